"""Retries that take about a day, to their end: in a cloud whose day lasts nine seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from local.google import Fault

from .kit import Letter, Post, check_letter

TIME_FACTOR = 1e-4

FORWARD, BOUNCE = "Forward to Gmail", "Send bounce"


@dataclass(frozen=True)
class Case:
    """`attempts` of a task, all of which fail with `error`; `refused` is the function that Lambda
    does not invoke."""

    title: str
    task: str
    error: str
    attempts: int
    refused: str = ""


# function → (task, attempts while Lambda throttles)
TASKS = {
    "fetcher": ("Fetch email", 33),
    "router": ("Look up routes", 33),
    "gmail-forwarder": (FORWARD, 33),
    "bouncer": (BOUNCE, 20),
}
THROTTLED, BROKEN = "Lambda.TooManyRequestsException", "Lambda.ServiceException"
CASES = [
    Case("Gmail", FORWARD, "GmailTemporaryError", 33),
    Case("SES", BOUNCE, "BounceThrottledError", 20),
    *(Case(f"throttled {f}", task, THROTTLED, times, f) for f, (task, times) in TASKS.items()),
    *(Case(f"broken {f}", task, BROKEN, 7, f) for f, (task, _) in TASKS.items()),
]
# task → (action, queue)
PARKED = {
    "Fetch email": ("fetch", "InputDlq"),
    "Look up routes": ("route", "InputDlq"),
    FORWARD: ("forward-to-gmail", "GmailForwarderDlq"),
    BOUNCE: ("bounce", "BouncerDlq"),
}


@dataclass(frozen=True)
class Email:
    notification: dict[str, Any]
    recipient: str
    mailbox: str

    @property
    def message_id(self) -> str:
        return str(self.notification["mail"]["messageId"])


def stored(post: Post, case: Case) -> Email:
    mailbox = post.mailbox()
    recipient = post.address("bounce" if case.task == BOUNCE else "forward-to-gmail", mailbox)
    # From the days to come, because the retries make an email too old for a bounce here.
    notification = post.store(recipient, timestamp=post.cloud.now() + 10 * 86400)
    return Email(notification, recipient, mailbox)


def _refuse_all(post: Post, case: Case, message_id: str) -> None:
    def is_refused(params: Mapping[str, Any]) -> bool:
        return f"-{case.refused}-" in params["FunctionName"] and message_id in str(
            params["Payload"]
        )

    post.cloud.gate.refuse("lambda:Invoke", case.error.removeprefix("Lambda."), is_refused)


@pytest.fixture(scope="module")
def sent(post: Post) -> tuple[dict[str, Email], list[Letter]]:
    """All emails, retried side by side, and the dead letters that they left."""
    emails = {case.title: stored(post, case) for case in CASES}
    post.cloud.google.faults.append(
        Fault(
            on="start",
            status=429,
            reason="rateLimitExceeded",
            mailbox=emails["Gmail"].mailbox,
            times=None,
        )
    )
    post.cloud.gate.refuse("ses:SendBounce", "Throttling", times=20)
    for case in CASES:
        email = emails[case.title]
        if case.refused:
            _refuse_all(post, case, email.message_id)
        post.cloud.publish(email.notification)
    post.cloud.wait_idle(120)
    return emails, post.take()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_ends_in_the_dead_letter_queue(
    case: Case, post: Post, sent: tuple[dict[str, Email], list[Letter]]
) -> None:
    emails, letters = sent
    email = emails[case.title]
    run = post.run(email.message_id)
    assert (run.status, run.error) == ("FAILED", "DeadLettered")
    assert post.is_marked(run)
    assert run.attempts[case.task] == case.attempts
    assert set(run.errors) == {(case.task, case.error)}
    (letter,) = (x for x in letters if x.body["mail"] == run.input["mail"])
    action, queue = PARKED[case.task]
    assert letter.queue == queue
    whole = queue == "InputDlq"
    check_letter(
        letter,
        run,
        case.error,
        action=action,
        target=email.mailbox if case.task == FORWARD else "",
        rule="" if whole else email.recipient,
        recipients=[email.recipient],
        cause="not now" if case.refused else "",
    )
    assert post.copies(email.mailbox) == 0
