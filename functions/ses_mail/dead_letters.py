"""Parking a message in a dead-letter queue, from where it can be sent back as it is."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef

# SQS refuses more than 1 MiB of body and attributes together.
MESSAGE_LENGTH = 1024 * 1024 - 1024


def park(
    sqs: "SQSClient", queue_url: str, letter: Mapping[str, Any], instead: str | None = None
) -> None:
    """Send a dead letter, whose `failure` gives the attributes Action and Error.

    instead is what is sent if the letter is too long. ASCII-only JSON holds any text, while SQS
    refuses control characters, empty values and U+FFFE in what is sent as it is.
    """
    failure = letter["failure"]
    attributes = {
        "MessageId": letter.get("mail", {}).get("messageId", ""),
        "Action": failure["action"],
        "Error": failure["error"],
    }
    given: dict[str, MessageAttributeValueTypeDef] = {
        name: {"DataType": "String", "StringValue": value}
        for name, value in attributes.items()
        if value
    }
    body = json.dumps(letter)
    if instead is not None and len(body) > MESSAGE_LENGTH:
        body = instead
    sqs.send_message(QueueUrl=queue_url, MessageBody=body, MessageAttributes=given)
