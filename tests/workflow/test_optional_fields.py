"""Every optional field of a notification and of `redrive` absent in turn, in every way in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from .kit import Letter, Post, check_letter

# `redrive.to` would take the place of the rules: absent in all of these, it is test_redrive.py's.
OPTIONAL = (
    *("mail.timestamp", "mail.source", "receipt.timestamp", "receipt.dmarcPolicy"),
    *(f"receipt.{name}Verdict" for name in ("spam", "virus", "spf", "dkim", "dmarc")),
    *("redrive", "redrive.attempt", "redrive.recipients"),
    *("redrive.ignoreVerdicts", "redrive.force", "redrive.note"),
)
ABSENT: list[tuple[str, ...]] = [
    (),
    *((path,) for path in OPTIONAL),
    ("mail.timestamp", "receipt.timestamp"),
    tuple(path for path in OPTIONAL if path != "redrive"),
    OPTIONAL,
]
# A field that no release knows yet.
NOTE = {"by": "operator", "tickets": ["one"], "nested": {"empty": [], "text": "", "no": None}}
WAYS = ("queue", "direct", "email missing", "table out of order")


def execution_input(notification: dict[str, Any], absent: Sequence[str]) -> dict[str, Any]:
    """A full input without these fields."""
    mail, receipt = notification["mail"], notification["receipt"]
    full = {
        "mail": {name: mail[name] for name in ("messageId", "source", "timestamp")},
        "receipt": {
            **{n: v for n, v in receipt.items() if n.endswith("Verdict")},
            **{name: receipt[name] for name in ("timestamp", "recipients", "action")},
            "dmarcPolicy": "reject",
        },
        "redrive": {
            "attempt": 3,
            "recipients": receipt["recipients"],
            "ignoreVerdicts": False,
            "force": "nonce",
            "note": NOTE,
        },
    }
    for path in absent:
        part, _, name = path.partition(".")
        if name:
            full.get(part, {}).pop(name, None)
        else:
            full.pop(part)
    return full


@dataclass(frozen=True)
class Email:
    """One email to four recipients with four different ends."""

    notification: dict[str, Any]
    mailbox: str
    forwarded: str
    bounced: str
    stored: str
    malformed: str

    @property
    def message_id(self) -> str:
        return str(self.notification["mail"]["messageId"])

    @property
    def recipients(self) -> list[str]:
        return [self.forwarded, self.bounced, self.stored, self.malformed]


def stored(post: Post, way: str) -> Email:
    forwarded, mailbox = post.forwarded()
    bounced, kept, malformed = (post.address(action) for action in ("bounce", "store", "typo"))
    notification = post.store(forwarded, bounced, kept, malformed)
    if way == "email missing":
        action = notification["receipt"]["action"]
        post.cloud.client("s3").delete_object(Bucket=action["bucketName"], Key=action["objectKey"])
    return Email(notification, mailbox, forwarded, bounced, kept, malformed)


@dataclass(frozen=True)
class Sent:
    way: str
    emails: dict[tuple[str, ...], Email]
    letters: list[Letter]


@pytest.fixture(scope="module", params=WAYS)
def sent(request: pytest.FixtureRequest, post: Post) -> Sent:
    """All emails of one way in, on their way together."""
    way = request.param
    emails = {absent: stored(post, way) for absent in ABSENT}
    if way == "table out of order":
        post.cloud.gate.refuse("dynamodb:BatchGetItem", "AccessDeniedException")
    for absent, email in emails.items():
        fields = execution_input(email.notification, absent)
        if way == "queue":
            post.queue(fields)
        else:
            post.start(email.message_id, fields)
    post.cloud.wait_idle(120)
    post.cloud.gate.open()
    return Sent(way, emails, post.take())


def _title(absent: tuple[str, ...]) -> str:
    return " and ".join(absent) if len(absent) < 3 else f"{len(absent)} fields"


@pytest.mark.parametrize("absent", ABSENT, ids=_title)
def test_workflow_runs_without(absent: tuple[str, ...], post: Post, sent: Sent) -> None:
    way, email = sent.way, sent.emails[absent]
    run = post.run(email.message_id)
    assert (run.status, run.error) == ("FAILED", "DeadLettered"), run.errors
    assert post.is_marked(run)
    (letter,) = (x for x in sent.letters if x.body["mail"] == run.input["mail"])
    old = run.input.get("redrive", {})
    kept = {n: v for n, v in old.items() if n not in ("attempt", "recipients")}
    assert ("note" in kept) == (not {"redrive", "redrive.note"} & set(absent))
    whole = {"email missing": "EmailNotFoundError", "table out of order": "ClientError"}.get(way)
    check_letter(
        letter,
        run,
        whole or "InvalidRoutingRuleError",
        action={"email missing": "fetch"}.get(way, "route"),
        rule="" if whole else email.malformed,
        recipients=email.recipients if whole else [email.malformed],
        redrive=kept,
    )
    if whole:
        assert post.copies(email.mailbox) == 0
        return
    assert run.ended("delivered") == {email.forwarded}
    assert run.ended("stored") == {email.stored}
    assert run.ended("dead-lettered") == {email.malformed}
    (copy,) = post.cloud.google.messages(email.mailbox)
    assert set(copy.labels) == {"INBOX", "UNREAD"}
    # Without a sender nobody can be told, without a time SES would refuse, and without SPF nobody
    # vouches for an envelope sender that is not the From: address.
    harmful = {"mail.source", "receipt.spfVerdict"} & set(absent)
    harmful = harmful or {"mail.timestamp", "receipt.timestamp"} <= set(absent)
    assert run.ended("suppressed" if harmful else "bounced") == {email.bounced}
