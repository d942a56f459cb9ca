"""What goes wrong in a first night: how each trouble comes, when it can be seen, and how it passes.

Knows the embedded cloud and nothing of who looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from local.cloud import Cloud
from local.faults import THROTTLE
from local.faults import Fault as CallFault
from local.google import Fault as GmailFault

ADDRESS = "support@example.com"
MAILBOX = "your-email@gmail.com"
PATIENCE = 240.0  # real seconds


def _nobody(cloud: Cloud) -> None:
    """It passes only by what an operator does."""


@dataclass(frozen=True)
class Trouble:
    """`comes` before the email arrives that suffers it; `shows` says whether whoever looks can see
    it by now; `passes` is what others do about it."""

    comes: Callable[[Cloud], None]
    shows: Callable[[Cloud], bool]
    passes: Callable[[Cloud], None] = _nobody


def start(cloud: Cloud) -> None:
    """A rule that forwards to a mailbox with a good token."""
    cloud.add_mailbox(MAILBOX, default=True)
    cloud.put_rule(ADDRESS, "forward-to-gmail", MAILBOX)
    cloud.wait_idle(PATIENCE)


def strike(cloud: Cloud, trouble: Trouble) -> str:
    """Let the trouble come and an email with it; its id, when the trouble shows."""
    trouble.comes(cloud)
    message_id = cloud.send(b"Subject: Invoice\r\n\r\nHi\r\n", "zoe@elsewhere.example", [ADDRESS])
    until(lambda: trouble.shows(cloud))
    return message_id


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def _letters(queue: str) -> Callable[[Cloud], bool]:
    return lambda cloud: bool(cloud.dead_letters(queue))


def _alarm(name: str) -> Callable[[Cloud], bool]:
    return lambda cloud: name in cloud.metrics.alarms()


def _revoke(cloud: Cloud) -> None:
    cloud.google.revoke(MAILBOX)
    cloud.events.tick()  # the hourly check


def _take_gmail_down(cloud: Cloud) -> None:
    cloud.google.faults.append(GmailFault(on="start", status=503, times=None))


def _bring_gmail_back(cloud: Cloud) -> None:
    cloud.google.faults.clear()


def _spoil_the_rule(cloud: Cloud) -> None:
    cloud.put_rule(ADDRESS, "forward-to-gmail")


def _stop_the_pipe(cloud: Cloud) -> None:
    cloud.pipe.pause()


def _throttle(cloud: Cloud) -> None:
    router = f"ses-mail-router-{cloud.environment}"
    cloud.faults.faults.append(CallFault(THROTTLE, "dynamodb:BatchGetItem", by=router, whole=True))


def _throttle_no_more(cloud: Cloud) -> None:
    cloud.faults.heal()


TROUBLES = {
    "token dead": Trouble(_revoke, _letters("GmailForwarderDlq")),
    "Gmail down for an hour": Trouble(
        # What the alarm reads is an hour old by then.
        _take_gmail_down,
        _alarm("ses-mail-delivery-delayed-test"),
        _bring_gmail_back,
    ),
    "malformed rule": Trouble(_spoil_the_rule, _letters("InputDlq")),
    "pipe stopped": Trouble(_stop_the_pipe, _alarm("ses-email-input-queue-age-test")),
    "DynamoDB throttled": Trouble(_throttle, _letters("InputDlq"), _throttle_no_more),
}
