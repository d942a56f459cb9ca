"""What SES says about an email, reduced to what the workflow may know of it.

Source: AWS, "Contents of notifications for Amazon SES email receiving".
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

from ses_mail import dead_letters
from ses_mail.addresses import canonical, is_address, mailbox
from ses_mail.errors import InvalidNotificationError
from ses_mail.payloads import ExecutionInput, Mail, Receipt, Redrive

SETUP_MESSAGE_ID = "AMAZON_SES_SETUP_NOTIFICATION"
_VerdictName = Literal["spamVerdict", "virusVerdict", "spfVerdict", "dkimVerdict", "dmarcVerdict"]
VERDICTS: tuple[_VerdictName, ...] = get_args(_VerdictName)

# An execution name has 80 characters, and a redrive appends `-{attempt}-{8 hex}`: 64 + 7 + 9.
_MESSAGE_ID = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_REPEATED = re.compile(r"(?P<message_id>.+?)-\d+-[0-9a-f]{8}")
_NO_RECEIPT: Receipt = {
    "recipients": [],
    "action": {"type": "", "bucketName": "", "objectKey": ""},
}
# SNS envelope, `{original, failure}` and JSON in a JSON string may nest; nothing sane nests deeper.
_LAYERS = 10


class Notification(NamedTuple):
    """An email as the workflow sees it; fields of redrive that we do not know are kept."""

    mail: Mail
    receipt: Receipt
    redrive: Redrive | None

    @property
    def message_id(self) -> str:
        """SES's id of the email."""
        return self.mail["messageId"]

    @property
    def is_setup(self) -> bool:
        """Whether SES only announces that a receipt rule was made: there is no email then."""
        return self.message_id == SETUP_MESSAGE_ID

    def execution_input(self) -> str:
        """Canonical JSON, so that the same email always gives the same input."""
        fields: ExecutionInput = {"mail": self.mail, "receipt": self.receipt}
        if self.redrive is not None:
            fields["redrive"] = self.redrive
        return _canonical_json(fields)

    def execution_names(self) -> list[str]:
        """Names to try in turn; the next one only if the last belongs to other recipients."""
        if self.redrive is not None:
            attempt = self.redrive["attempt"]
            return [f"{self.message_id}-{attempt}-{_hash(_comparable(self.redrive))}"]
        recipients = sorted({canonical(r) for r in self.receipt["recipients"]})
        return [self.message_id, f"{self.message_id}-0-{_hash(recipients)}"]

    def same_delivery(self, execution_input: str) -> bool:
        """Whether an execution with this input serves the same recipients."""
        other = json.loads(execution_input)
        return self._identity(other["receipt"], other.get("redrive")) == self._identity(
            self.receipt, self.redrive
        )

    @staticmethod
    def _identity(receipt: Mapping[str, Any], redrive: Mapping[str, Any] | None) -> object:
        if redrive is not None:
            return _comparable(redrive)
        return {canonical(r) for r in receipt["recipients"]}


def parse(body: object) -> Notification:
    """Read a notification however it arrives: SNS envelope or raw, JSON in a JSON string, a dead
    letter, or a `{original, failure}` that the starter once parked.

    Raises InvalidNotificationError with the reason.
    """
    message = _unwrap(body)
    if message.get("notificationType", "Received") != "Received":
        raise InvalidNotificationError(
            f"notificationType is {message['notificationType']!r}, expected 'Received'"
        )
    mail, receipt = message.get("mail"), message.get("receipt")
    if not isinstance(mail, dict) or not isinstance(receipt, dict):
        raise InvalidNotificationError("not an SES notification: `mail` or `receipt` is missing")
    message_id = _text(mail.get("messageId"), "mail.messageId")
    if not _MESSAGE_ID.match(message_id):
        raise InvalidNotificationError(f"mail.messageId {message_id!r} is not an SES message id")
    reduced_mail: Mail = {"messageId": message_id, "source": _optional_text(mail, "source")}
    if timestamp := _optional_text(mail, "timestamp"):
        reduced_mail["timestamp"] = timestamp
    if message_id == SETUP_MESSAGE_ID:
        return Notification(reduced_mail, _NO_RECEIPT, None)
    notification = Notification(
        reduced_mail, _reduce_receipt(receipt), _redrive(message.get("redrive"), receipt)
    )
    try:
        length = dead_letters.length(*notification)
    except (ValueError, RecursionError) as error:
        # Only a redrive's further fields can hold such: NaN, an infinite number, a thousand levels.
        raise InvalidNotificationError(f"redrive is not JSON for an execution: {error}") from None
    if length > dead_letters.LETTER_LENGTH:
        served = (notification.redrive or notification.receipt)["recipients"]
        raise InvalidNotificationError(
            f"the email, {len(served)} recipients and redrive have {length} characters as a dead "
            f"letter, which takes {dead_letters.LETTER_LENGTH}: send it for some of the recipients "
            "at a time"
        )
    return notification


def message_id_of(execution_name: str) -> str:
    """The email that an execution is named after (see execution_names)."""
    match = _REPEATED.fullmatch(execution_name)
    return match["message_id"] if match else execution_name


def _unwrap(body: object) -> dict[str, Any]:
    for _ in range(_LAYERS):
        if isinstance(body, str):
            try:
                body = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise InvalidNotificationError(f"not JSON: {error}") from None
        elif not isinstance(body, dict):
            raise InvalidNotificationError(f"a JSON {type(body).__name__} is not a notification")
        elif body.get("Type") == "Notification" and "Message" in body:
            body = body["Message"]
        elif dead_letters.is_parked(body):
            body = body["original"]
        else:
            return body
    raise InvalidNotificationError(f"wrapped more than {_LAYERS} times")


def _reduce_receipt(receipt: dict[str, Any]) -> Receipt:
    action = receipt.get("action")
    if not isinstance(action, dict) or action.get("type", "S3") != "S3":
        raise InvalidNotificationError("receipt.action is not the S3 action: no stored email")
    reduced: Receipt = {
        "recipients": _recipients(receipt.get("recipients"), "receipt.recipients"),
        "action": {
            "type": "S3",
            "bucketName": _text(action.get("bucketName"), "receipt.action.bucketName"),
            "objectKey": _text(action.get("objectKey"), "receipt.action.objectKey"),
        },
    }
    if timestamp := _optional_text(receipt, "timestamp"):
        reduced["timestamp"] = timestamp
    for name in VERDICTS:
        verdict = receipt.get(name)
        if isinstance(verdict, dict) and (status := _optional_text(verdict, "status")):
            reduced[name] = {"status": status}
    # Text by SES's reference, an object with `status` in the example on AWS's own page.
    policy = receipt.get("dmarcPolicy")
    holder = policy if isinstance(policy, dict) else {"status": policy}
    if said := _optional_text(holder, "status"):
        reduced["dmarcPolicy"] = said.lower()
    return reduced


def _redrive(redrive: object, receipt: Mapping[str, Any]) -> Redrive | None:
    if redrive is None:
        return None
    if not isinstance(redrive, dict):
        raise InvalidNotificationError("redrive is not an object")
    attempt = redrive.get("attempt", 1)
    if (
        not isinstance(attempt, int)
        or isinstance(attempt, bool)
        or not 0 < attempt <= dead_letters.MAX_ATTEMPT
    ):
        raise InvalidNotificationError(f"redrive.attempt {attempt!r} is not a positive number")
    if not isinstance(redrive.get("ignoreVerdicts", False), bool):
        raise InvalidNotificationError("redrive.ignoreVerdicts is neither true nor false")
    everyone = _recipients(receipt.get("recipients"), "receipt.recipients")
    recipients = _recipients(redrive.get("recipients", everyone), "redrive.recipients")
    known = {canonical(r) for r in everyone}
    strangers = [r for r in recipients if canonical(r) not in known]
    if strangers:
        raise InvalidNotificationError(f"redrive.recipients: {strangers} did not get the email")
    kept = cast(Redrive, {**redrive, "attempt": attempt, "recipients": recipients})
    if "force" in redrive:
        kept["force"] = _text(redrive["force"], "redrive.force")
    if "to" in redrive:
        to = _text(redrive["to"], "redrive.to")
        if not is_address(to):
            raise InvalidNotificationError(f"redrive.to {to!r} is not an address")
        kept["to"] = mailbox(to)
    return kept


def _recipients(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise InvalidNotificationError(f"{name} is not a list with at least one address")
    return [_text(recipient, name) for recipient in value]


def _optional_text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) and value.isprintable() else ""


def _text(value: object, name: str) -> str:
    # What is not printable (controls, lone surrogates) is refused by DynamoDB, SQS or S3 later on.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InvalidNotificationError(f"{name} is missing or not printable text: {value!r}")
    return value


def _comparable(redrive: Mapping[str, Any]) -> dict[str, Any]:
    return {**redrive, "recipients": sorted({canonical(r) for r in redrive["recipients"]})}


def _hash(value: Mapping[str, Any] | Sequence[str]) -> str:
    return hashlib.sha256(_canonical_json(value).encode()).hexdigest()[:8]


def _canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
