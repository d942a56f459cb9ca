"""Dead letters: looked at without taking them, and taken one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ses_mail import dead_letters, notification
from ses_mail.errors import InvalidNotificationError
from ses_mail.notification import Notification

from .history import error_message
from .output import iso
from .session import Session

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef

# Seconds for which what is looked at stays hidden from others if we die meanwhile; long enough to
# read tens of thousands of messages.
_HIDDEN = 300


class Dlq(StrEnum):
    """What people call the dead-letter queues: by what failed."""

    INPUT = "input"
    FORWARDER = "forwarder"
    BOUNCER = "bouncer"

    @property
    def queue(self) -> str:
        """The queue's name without its environment."""
        return {
            Dlq.INPUT: "ses-email-input-dlq",
            Dlq.FORWARDER: "ses-gmail-forwarder-dlq",
            Dlq.BOUNCER: "ses-bouncer-dlq",
        }[self]


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A message of a queue; queue is the queue's name, id SQS's, receipt the right to delete it."""

    queue: str
    id: str
    text: str
    attributes: dict[str, Any]
    sent: datetime
    receives: int
    receipt: str = field(repr=False, default="")

    @property
    def body(self) -> dict[str, Any]:
        """The message parsed; empty if it is not a JSON object."""
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def notification(self) -> Notification | None:
        """The email that it is about; None if it is not a notification."""
        try:
            return notification.parse(self.text)
        except InvalidNotificationError:
            return None

    @property
    def failure(self) -> Mapping[str, Any]:
        return dead_letters.failure_in(self.text)

    @property
    def message_id(self) -> str:
        attribute = self.attributes.get("MessageId", {}).get("StringValue", "")
        email = None if attribute else self.notification
        return email.message_id if email else str(attribute)

    @property
    def error(self) -> str:
        """The error's class; empty if SNS or the Pipe put it here, which give no reason."""
        attribute = self.attributes.get("Error", {}).get("StringValue", "")
        return str(attribute or self.failure.get("error", ""))

    @property
    def cause(self) -> str:
        return error_message(str(self.failure.get("cause", "")))

    @property
    def recipients(self) -> list[str]:
        if isinstance(listed := self.failure.get("recipients"), list):
            return [str(recipient) for recipient in listed]
        email = self.notification
        if email is None or email.is_setup:
            return []
        return list((email.redrive or email.receipt)["recipients"])

    @property
    def attempt(self) -> int:
        """The attempt that a redrive of it would be."""
        email = self.notification
        return int(email.redrive["attempt"]) if email and email.redrive else 0

    def as_json(self) -> dict[str, Any]:
        """Everything of it, for machines and for keeping."""
        return {
            "queue": self.queue,
            "sqs_message_id": self.id,
            "message_id": self.message_id,
            "error": self.error,
            "cause": self.cause,
            "recipients": self.recipients,
            "sent": iso(self.sent),
            "receives": self.receives,
            "attributes": self.attributes,
            "letter": self.body or self.text,
        }


@contextmanager
def held(
    session: Session, queue: str, limit: int | None = None
) -> Iterator[tuple[Iterator[Letter], Callable[[Letter], None]]]:
    """(letters, delete): what lies in a queue, each letter once, and a way to take one away.

    queue is the name without its environment. At the end all letters that were not deleted are
    shown to others again at once. What others hold right now is not seen.
    """
    url = session.queue_url(queue)
    handles: dict[str, str] = {}
    met: set[str] = set()

    def receive() -> Iterator[Letter]:
        seen = 0
        while limit is None or seen < limit:
            # The wait makes SQS ask all its servers: an empty answer means an empty queue.
            messages = session.sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=min(10, 10 if limit is None else limit - seen),
                VisibilityTimeout=_HIDDEN,
                WaitTimeSeconds=1,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
            ).get("Messages", [])
            received = [_letter(f"{queue}-{session.environment}", each) for each in messages]
            # Of all, before any is looked at: what follows may be interrupted.
            handles.update((letter.id, letter.receipt) for letter in received)
            fresh = [letter for letter in received if letter.id not in met]
            met.update(letter.id for letter in fresh)
            seen += len(fresh)
            yield from fresh
            if not fresh:
                return  # nothing, or only what shows again since reading took so long

    def delete(letter: Letter) -> None:
        session.sqs.delete_message(QueueUrl=url, ReceiptHandle=handles[letter.id])
        del handles[letter.id]

    try:
        yield receive(), delete
    finally:
        kept = list(handles.values())
        for start in range(0, len(kept), 10):
            session.sqs.change_message_visibility_batch(
                QueueUrl=url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                    for number, handle in enumerate(kept[start : start + 10])
                ],
            )


def peek(session: Session, queue: str, limit: int | None = None) -> list[Letter]:
    """The letters of a queue, oldest first; they stay."""
    with held(session, queue, limit) as (letters, _):
        return sorted(letters, key=lambda letter: letter.sent)


def _letter(queue: str, message: MessageTypeDef) -> Letter:
    system = message.get("Attributes", {})
    return Letter(
        queue=queue,
        id=message["MessageId"],
        text=message["Body"],
        attributes=dict(message.get("MessageAttributes", {})),
        sent=datetime.fromtimestamp(int(system["SentTimestamp"]) / 1000, UTC),
        receives=int(system["ApproximateReceiveCount"]),
        receipt=message["ReceiptHandle"],
    )
