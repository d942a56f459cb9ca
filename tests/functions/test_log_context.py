"""What the lines of one email say never stays for the next one's."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import starter
from ses_mail import observe

if TYPE_CHECKING:
    from tests.conftest import Aws, LambdaContext, Logs


def test_the_next_task_knows_nothing_of_the_last_one(
    context: "LambdaContext", logs: "Logs", event: Callable[..., Any]
) -> None:
    def handler(email: dict[str, Any], _context: object) -> None:
        if email["messageId"] == "first":
            observe.logger.append_keys(mailbox="anna@example.com")
        observe.logger.info("Seen")

    for message_id in ("first", "second"):
        observe.task(handler)(event("router", messageId=message_id), context)
    first, second = logs.read("Seen")
    assert (first["messageId"], first["mailbox"]) == ("first", "anna@example.com")
    assert second["messageId"] == "second"
    assert "mailbox" not in second


def test_what_is_no_email_is_not_logged_as_the_one_before(
    aws: "Aws",
    context: "LambdaContext",
    logs: "Logs",
    event: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one batch, and in the next one of the same process."""
    monkeypatch.setenv("STATE_MACHINE_ARN", aws.state_machine_arn)
    monkeypatch.setenv("INPUT_DLQ_URL", aws.input_dlq_url)
    email = {"messageId": "m0", "body": json.dumps(event("ses-notification"))}
    starter.handler([email, {"messageId": "m1", "body": "no JSON"}], context)
    starter.handler([{"messageId": "m2", "body": "[]"}], context)
    lines = logs.read("Start result")
    assert [(x["sqsMessageId"], x["result"]) for x in lines] == [
        ("m0", "started"),
        ("m1", "parked"),
        ("m2", "parked"),
    ]
    assert ["messageId" in line for line in lines] == [True, False, False]
