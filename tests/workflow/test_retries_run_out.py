"""Retries that take about a day, to their end: in a cloud whose day lasts nine seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda.models import LambdaBackend

from local.google import Fault

from .kit import Letter, Post, Run, check_letter, refuse

TIME_FACTOR = 1e-4

FORWARD, BOUNCE = "Forward to Gmail", "Send bounce"


@dataclass(frozen=True)
class Case:
    """attempts of the task; refused: what Lambda refuses, told by function and payload."""

    title: str
    task: str
    action: str
    error: str
    attempts: int
    refused: str = ""
    error_of_lambda: str = "TooManyRequestsException"


CASES = [
    Case("Gmail", FORWARD, "forward-to-gmail", "GmailTemporaryError", 33),
    Case("SES", BOUNCE, "bounce", "BounceThrottledError", 20),
    *(
        Case(f"Lambda, {function}", task, action, "Lambda.TooManyRequestsException", attempts, function)
        for function, task, action, attempts in (
            ("fetcher", "Fetch email", "fetch", 33),
            ("router", "Look up routes", "route", 33),
            ("gmail-forwarder", FORWARD, "forward-to-gmail", 33),
            ("bouncer", BOUNCE, "bounce", 20),
        )
    ),
    *(
        Case(f"ServiceException, {function}", task, action, "Lambda.ServiceException", 7, function, "ServiceException")
        for function, task, action in (
            ("fetcher", "Fetch email", "fetch"),
            ("router", "Look up routes", "route"),
            ("gmail-forwarder", FORWARD, "forward-to-gmail"),
            ("bouncer", BOUNCE, "bounce"),
        )
    ),
]  # fmt: skip
QUEUES = {"forward-to-gmail": "GmailForwarderDlq", "bounce": "BouncerDlq"}


@dataclass(frozen=True)
class Sent:
    run: Run
    recipient: str
    mailbox: str
    letters: list[Letter]


def _refusal(function: str, message_id: str) -> Callable[..., bool]:
    def refused(self: Any, name: str, qualifier: Any, body: Any, *_: Any) -> bool:
        return f"-{function}-" in name and message_id in str(body)

    return refused


@pytest.fixture(scope="module")
def sent(post: Post) -> dict[str, Sent]:
    made = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for case in CASES:
            mailbox = post.mailbox()
            recipient = post.address(
                "bounce" if case.task == BOUNCE else "forward-to-gmail", mailbox
            )
            # From tomorrow: this cloud's clock would make the email too old for a bounce.
            notification = post.store(recipient, timestamp=post.cloud.now() + 10 * 86400)
            message_id = notification["mail"]["messageId"]
            made[case.title] = (message_id, recipient, mailbox)
            if case.refused:
                error = LambdaClientError(case.error_of_lambda, "not now")
                refuse(
                    monkeypatch, LambdaBackend, "invoke", error, _refusal(case.refused, message_id)
                )
            post.cloud.publish(notification)
        post.cloud.google.faults.append(
            Fault(
                on="start",
                status=429,
                reason="rateLimitExceeded",
                mailbox=made["Gmail"][2],
                times=None,
            )
        )
        post.cloud.ses.faults.append(("Throttling", 20))
        post.cloud.wait_idle(120)
    letters = post.take()
    return {
        title: Sent(
            post.run(message_id),
            recipient,
            mailbox,
            [letter for letter in letters if letter.body["mail"]["messageId"] == message_id],
        )
        for title, (message_id, recipient, mailbox) in made.items()
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_ends_in_the_dead_letter_queue(case: Case, post: Post, sent: dict[str, Sent]) -> None:
    email = sent[case.title]
    assert (email.run.status, email.run.error) == ("FAILED", "DeadLettered")
    assert post.is_marked(email.run)
    assert email.run.attempts[case.task] == case.attempts
    assert set(email.run.errors) == {(case.task, case.error)}
    (letter,) = email.letters
    assert letter.queue == QUEUES.get(case.action, "InputDlq")
    whole = case.action in ("fetch", "route")
    check_letter(
        letter,
        email.run,
        case.error,
        action=case.action,
        target=email.mailbox if case.action == "forward-to-gmail" else "",
        rule="" if whole else email.recipient,
        recipients=[email.recipient],
        cause="not now" if case.refused else "",
    )
    assert post.copies(email.mailbox) == 0
