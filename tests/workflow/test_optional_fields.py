"""Every optional field of a notification and of `redrive` absent in turn, in every way in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from moto.dynamodb.exceptions import DynamodbException
from moto.dynamodb.responses import DynamoHandler

from .kit import Letter, Post, Run, check_letter, refuse

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
NOTE = {"by": "operator", "tickets": ["one"], "nested": {"empty": [], "text": ""}}
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
class Sent:
    run: Run
    forwarded: str
    mailbox: str
    bounced: str
    stored: str
    malformed: str
    letters: list[Letter]

    @property
    def recipients(self) -> list[str]:
        return [self.forwarded, self.bounced, self.stored, self.malformed]


def _send(post: Post, way: str, absent: Sequence[str]) -> tuple[str, str, list[str]]:
    forwarded, mailbox = post.forwarded()
    recipients = [forwarded, *(post.address(action) for action in ("bounce", "store", "typo"))]
    notification = post.store(*recipients)
    message_id = notification["mail"]["messageId"]
    if way == "email missing":
        action = notification["receipt"]["action"]
        post.cloud.client("s3").delete_object(Bucket=action["bucketName"], Key=action["objectKey"])
    fields = execution_input(notification, absent)
    if way == "queue":
        post.queue(fields)
    else:
        post.start(message_id, fields)
    return message_id, mailbox, recipients


@pytest.fixture(scope="module", params=WAYS)
def sent(request: pytest.FixtureRequest, post: Post) -> Iterator[tuple[str, dict[Any, Sent]]]:
    way = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        if way == "table out of order":
            denied = DynamodbException("AccessDeniedException", "not now")
            refuse(monkeypatch, DynamoHandler, "batch_get_item", denied, lambda self: True)
        made = {absent: _send(post, way, absent) for absent in ABSENT}
        post.cloud.wait_idle(120)
    letters = post.take()
    yield (
        way,
        {
            absent: Sent(
                post.run(message_id),
                recipients[0],
                mailbox,
                *recipients[1:],
                letters=[x for x in letters if x.body["mail"]["messageId"] == message_id],
            )
            for absent, (message_id, mailbox, recipients) in made.items()
        },
    )


@pytest.mark.parametrize("absent", ABSENT, ids=lambda absent: " ".join(absent) or "nothing")
def test_workflow_runs_without(
    absent: tuple[str, ...], post: Post, sent: tuple[str, dict[Any, Sent]]
) -> None:
    way, email = sent[0], sent[1][absent]
    run = email.run
    assert (run.status, run.error) == ("FAILED", "DeadLettered"), run.errors
    assert post.is_marked(run)
    (letter,) = email.letters
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
    # Without a sender nobody can be told, and without a time SES would refuse.
    harmful = "mail.source" in absent or {"mail.timestamp", "receipt.timestamp"} <= set(absent)
    assert run.ended("suppressed" if harmful else "bounced") == {email.bounced}
