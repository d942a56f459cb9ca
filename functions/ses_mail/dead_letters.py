"""The dead letter: a message that can be sent back to the input queue as it is.

Written here by starter and sweeper, and by the state `Park` in the state machine's file (a test
compares the shapes). Two shapes: `DeadLetter` is a notification with
`redrive` and `failure`; `ParkedMessage` is `{original, failure}`, for what is not an email.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ses_mail.payloads import DeadLetter, Failure, Mail, ParkedMessage, Receipt, Redrive

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef

# SQS refuses more than 1 MiB of body and attributes together.
MESSAGE_LENGTH = 1024 * 1024 - 1024
# `Park` may have 256 KiB of arguments. 16 KiB are for what a failure says beside the recipients:
# the cause and the rules have 1,000 characters each, of at most 4 bytes.
LETTER_LENGTH = (256 - 16) * 1024
# An attempt of more digits would not fit into the execution's name.
MAX_ATTEMPT = 999_999
# `{original, failure}` may nest; nothing sane nests deeper.
_LAYERS = 10


def letter(mail: Mail, receipt: Receipt, redrive: Redrive | None, failure: Failure) -> DeadLetter:
    """The dead letter for all recipients of an execution with this input."""
    recipients = (redrive or receipt)["recipients"]
    return {
        "mail": mail,
        "receipt": receipt,
        "redrive": next_redrive(redrive, recipients),
        "failure": {**failure, "recipients": recipients},
    }


def next_redrive(redrive: Redrive | None, recipients: list[str]) -> Redrive:
    """All fields of the old one, one attempt more, and always the explicit list: under the old
    name it would be dropped as a duplicate."""
    old: Redrive = redrive or {"attempt": 0, "recipients": []}
    return {**old, "attempt": old["attempt"] + 1, "recipients": recipients}


def parked_message(body: str, failure: Failure) -> ParkedMessage:
    """What nobody can read, with the reason; parked again it is not wrapped once more."""
    return {"original": innermost(body), "failure": failure}


def length(mail: Mail, receipt: Receipt, redrive: Redrive | None) -> int:
    """Characters of the longest dead letter that an execution with this input may leave.

    The same for the email's first execution and for each redrive of all its recipients, so that
    what was taken once is never refused later.
    """
    recipients = (redrive or receipt)["recipients"]
    again = {**(redrive or {}), "attempt": MAX_ATTEMPT, "recipients": recipients}
    whole = {"mail": mail, "receipt": receipt, "redrive": again, "failure": recipients}
    return len(json.dumps(whole, allow_nan=False))


def innermost(body: str) -> str:
    """What was parked first, of a body that may be a parked `{original, failure}` itself.

    Parked again as it is, each round would double the backslashes.
    """
    for _ in range(_LAYERS):
        try:
            parked = json.loads(body)
        except (ValueError, RecursionError):
            break
        if not is_parked(parked) or not isinstance(parked["original"], str):
            break
        body = parked["original"]
    return body


def is_parked(message: object) -> bool:
    """Whether a message is `{original, failure}`."""
    return isinstance(message, dict) and "original" in message and "mail" not in message


def failure_in(text: str) -> Mapping[str, Any]:
    """What a message says of its failure; empty if it says nothing, as one of SNS or the Pipe.

    Anybody's JSON may lie in a queue, so the fields have the types that they have.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    failure = message.get("failure") if isinstance(message, dict) else None
    return failure if isinstance(failure, dict) else {}


def park(
    sqs: "SQSClient",
    queue_url: str,
    message: DeadLetter | ParkedMessage,
    instead: str | None = None,
) -> None:
    """Send a dead letter, whose `failure` gives the attributes Action and Error.

    instead is what is sent if the letter is too long. ASCII-only JSON holds any text, while SQS
    refuses control characters, empty values and U+FFFE in what is sent as it is.
    """
    failure = message["failure"]
    mail: Mapping[str, Any] = message.get("mail") or {}  # type: ignore[assignment]
    attributes = {
        "MessageId": mail.get("messageId", ""),
        "Action": failure["action"],
        "Error": failure["error"],
    }
    given: dict[str, MessageAttributeValueTypeDef] = {
        name: {"DataType": "String", "StringValue": value}
        for name, value in attributes.items()
        if value
    }
    body = json.dumps(message)
    if instead is not None and len(body) > MESSAGE_LENGTH:
        body = instead
    sqs.send_message(QueueUrl=queue_url, MessageBody=body, MessageAttributes=given)
