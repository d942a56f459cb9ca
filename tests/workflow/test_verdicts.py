"""`Safe to deliver?`: what SES found out about an email, and what becomes of it."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from .kit import Post, email

INBOX, SPAM = {"INBOX", "UNREAD"}, {"SPAM"}
VERDICTS = ("spamVerdict", "virusVerdict", "spfVerdict", "dkimVerdict", "dmarcVerdict")


@dataclass(frozen=True)
class Case:
    """labels: those of the copy in the mailbox; without a copy the outcome says why."""

    title: str
    receipt: dict[str, Any] = field(default_factory=dict)  # None = the field is missing
    received: int = 1
    ignore: Any = None  # redrive.ignoreVerdicts
    labels: set[str] | None = None
    outcome: str = "delivered"


def failed(*names: str, status: str = "FAIL") -> dict[str, Any]:
    return {f"{name}Verdict": {"status": status} for name in names}


def case(title: str, receipt: dict[str, Any], labels: set[str], **more: Any) -> Case:
    return Case(title, receipt, labels=labels, **more)


CASES = [
    case("everything passes", {}, INBOX),
    Case("virus", failed("virus"), outcome="dropped"),
    Case("virus and spam", failed("virus", "spam"), outcome="dropped"),
    Case("virus in a loop", failed("virus"), received=26, outcome="dropped"),
    case("spam", failed("spam"), SPAM),
    case("SPF alone", failed("spf"), INBOX),
    case("DKIM alone", failed("dkim"), INBOX),
    case("SPF and DKIM", failed("spf", "dkim"), INBOX),
    *(
        case(f"DMARC fails, policy {policy}", {**failed("dmarc"), "dmarcPolicy": policy}, labels)
        for policy, labels in (
            (None, INBOX),
            ("none", INBOX),
            ("quarantine", SPAM),
            ("reject", SPAM),
            ("no such policy", INBOX),
        )
    ),
    case("DMARC passes, policy reject", {"dmarcPolicy": "reject"}, INBOX),
    case("DMARC is GRAY", {**failed("dmarc", status="GRAY"), "dmarcPolicy": "reject"}, INBOX),
    *(
        case(f"all verdicts {status}", {n: {"status": status} for n in VERDICTS}, INBOX)
        for status in ("GRAY", "PROCESSING_FAILED", "DISABLED", "something new")
    ),
    case("no verdicts at all", dict.fromkeys(VERDICTS), INBOX),
    case("verdicts without a status", {n: {} for n in VERDICTS}, INBOX),
    *(case(f"no {name}", {name: None}, INBOX) for name in VERDICTS),
    case("25 Received lines", {}, INBOX, received=25),
    case("no Received line", {}, INBOX, received=0),
    Case("26 Received lines", received=26, outcome="stored"),
    Case("loop of spam", failed("spam"), received=26, outcome="stored"),
    case("virus released", failed("virus"), INBOX, ignore=True),
    case("spam released", failed("spam"), INBOX, ignore=True),
    case("DMARC released", {**failed("dmarc"), "dmarcPolicy": "reject"}, INBOX, ignore=True),
    Case("a loop cannot be released", received=26, ignore=True, outcome="stored"),
    Case("virus not released", failed("virus"), ignore=False, outcome="dropped"),
]


@dataclass(frozen=True)
class Sent:
    message_id: str
    recipient: str
    mailbox: str


@pytest.fixture(scope="module")
def sent(post: Post) -> dict[str, Sent]:
    """All cases' emails, on their way together."""
    sent, notifications = {}, []
    for c in CASES:
        recipient, mailbox = post.forwarded()
        notification = post.store(recipient, raw=email(c.received))
        receipt = {**notification["receipt"], **c.receipt}
        notification["receipt"] = {k: v for k, v in receipt.items() if v is not None}
        if c.ignore is not None:
            notification["redrive"] = {"ignoreVerdicts": c.ignore}
        notifications.append(notification)
        sent[c.title] = Sent(notification["mail"]["messageId"], recipient, mailbox)
    for notification in notifications:
        post.cloud.publish(notification)
    post.cloud.wait_idle()
    return sent


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_verdict(case: Case, post: Post, sent: dict[str, Sent]) -> None:
    email = sent[case.title]
    run = post.run(email.message_id)
    assert run.status == "SUCCEEDED"
    assert run.ended(case.outcome) == {email.recipient}
    copies = post.cloud.google.messages(email.mailbox)
    assert [set(copy.labels) for copy in copies] == ([case.labels] if case.labels else [])
