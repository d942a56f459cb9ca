"""`Forward to Gmail`, from the task's payload to the mailbox."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gmail_forwarder
import pytest
from ses_mail.errors import (
    DeliveryInProgressError,
    GmailRejectedError,
    GmailTemporaryError,
    GmailTokenError,
)

from local.google import Fault, Google

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock
    from tests.fixtures.lambda_ import LambdaContext, Logs

Run = Callable[..., dict[str, Any]]
ANNA = "anna@gmail.com"
EMAIL = b"Subject: confidential \xff\r\n\r\nsecret body"


@pytest.fixture
def run(
    aws: "Aws",
    google: Google,
    time: "Clock",
    context: "LambdaContext",
    logs: "Logs",
    event: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name, value in {
        "DELIVERIES_TABLE": aws.deliveries_table,
        "TOKEN_PARAMETER": aws.token_parameter,
        "MAILBOX_TOKEN_PREFIX": aws.mailbox_token_prefix,
        "RETENTION_DAYS": "90",
    }.items():
        monkeypatch.setenv(name, value)
    gmail_forwarder._credentials.cache_clear()
    aws.put_token(google.add_mailbox(ANNA))
    email = aws.put_email(EMAIL)

    def invoke(**changes: Any) -> dict[str, Any]:
        return gmail_forwarder.handler(event("gmail_forwarder", email=email, **changes), context)

    return invoke


def without(sample: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key != name}


def test_the_sample_event(run: Run, google: Google, logs: "Logs") -> None:
    answer = run()
    (message,) = google.messages(ANNA)
    assert answer == {"outcome": "delivered", "resultId": message.id, "reason": ""}
    assert message.raw == b"Delivered-To: anna+news@example.com\r\n" + EMAIL
    assert message.labels == ("INBOX", "UNREAD")
    assert logs.metrics() == {"Forwarded": 1}
    (line,) = logs.read("Action result")
    assert line["recipients"] == ["anna+news@example.com"]
    assert (line["action"], line["target"]) == ("forward-to-gmail", ANNA)
    assert (line["result"], line["resultId"]) == ("delivered", message.id)


@pytest.mark.parametrize("name", ["receivedAt", "force"])
def test_an_optional_field_is_absent(
    run: Run, aws: "Aws", event: Callable[..., Any], context: "LambdaContext", name: str
) -> None:
    sample = without(event("gmail_forwarder", email=aws.put_email(EMAIL)), name)
    assert gmail_forwarder.handler(sample, context)["outcome"] == "delivered"


def test_again_and_by_force(run: Run, google: Google) -> None:
    run()
    assert run()["reason"] == "already-there"
    assert run(force="nonce")["reason"] == ""
    assert len(google.messages(ANNA)) == 2


def test_spam_goes_to_the_spam_folder_and_is_counted(
    run: Run, google: Google, logs: "Logs"
) -> None:
    run(labels=["SPAM"])
    assert google.messages(ANNA)[0].labels == ("SPAM",)
    assert logs.metrics() == {"Forwarded": 1, "Spam": 1}


@pytest.mark.parametrize(
    ("fault", "error", "code", "metrics"),
    [
        (
            Fault("start", 429, "rateLimitExceeded"),
            GmailTemporaryError,
            "rateLimitExceeded",
            {"DeliveryDelay": 5},
        ),
        (
            Fault("token", 503, html=True, times=None),
            GmailTemporaryError,
            "GmailTemporaryError",
            {"DeliveryDelay": 5},
        ),
        (Fault("token", 400, "invalid_grant"), GmailTokenError, "invalid_grant", {}),
        (Fault("start", 400, "invalidArgument"), GmailRejectedError, "invalidArgument", {}),
    ],
)
def test_errors_keep_their_class_and_are_logged_once(
    run: Run,
    google: Google,
    logs: "Logs",
    fault: Fault,
    error: type[Exception],
    code: str,
    metrics: dict[str, float],
) -> None:
    google.faults.append(fault)
    with pytest.raises(error) as raised:
        run()
    assert type(raised.value) is error, "Step Functions matches the exact name"
    (line,) = logs.read("Action result")
    assert (line["result"], line["error"], line["errorType"]) == ("failed", code, error.__name__)
    assert (line["target"], line["recipients"]) == (ANNA, ["anna+news@example.com"])
    assert line["level"] == "ERROR"
    assert logs.metrics() == metrics


def test_an_email_of_unknown_age_has_no_delay(run: Run, google: Google, logs: "Logs") -> None:
    google.faults.append(Fault("start", 429, "rateLimitExceeded"))
    with pytest.raises(GmailTemporaryError):
        run(receivedAt="")
    assert logs.metrics() == {}


def test_two_at_once(run: Run, aws: "Aws", time: "Clock") -> None:
    message_id = "o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1"
    aws.put_delivery(
        {
            "PK": f"EMAIL#{message_id}",
            "SK": f"FORWARD#{ANNA}",
            "delivery_state": "claimed",
            "lease_token": "another",
            "lease_until": int(time.now) + 330,
        }
    )
    with pytest.raises(DeliveryInProgressError):
        run()
    time.advance(331)
    assert run()["outcome"] == "delivered"


def test_the_lease_is_the_time_that_is_left_and_a_margin(
    run: Run, aws: "Aws", google: Google, context: "LambdaContext"
) -> None:
    context.milliseconds = 19_000
    with pytest.raises(GmailTemporaryError) as raised:
        run()
    assert raised.value.code == "out_of_time"
    assert google.messages(ANNA) == []


def test_credentials_are_kept_between_invocations(run: Run, aws: "Aws", google: Google) -> None:
    counted = aws.wire.count("ssm")
    run()
    run(messageId="another")
    assert counted == {"GetParameter": 2}
    assert google.requests["token"] == 1, "so is the access token"


def test_a_token_renewed_after_the_last_invocation(run: Run, aws: "Aws", google: Google) -> None:
    run()
    google.revoke(ANNA)
    aws.put_token(google.add_mailbox(ANNA))
    assert run(messageId="another")["outcome"] == "delivered"


def test_no_secret_and_no_content_is_logged(run: Run, google: Google, logs: "Logs") -> None:
    sessions = []
    open_session = google.open_session

    def spy(*arguments: Any) -> str:
        sessions.append(open_session(*arguments))
        return str(sessions[-1])

    google.open_session = spy  # type: ignore[method-assign]
    info = google.add_mailbox(ANNA)
    run()
    google.faults.append(Fault("last_chunk", 400, "invalidArgument"))
    with pytest.raises(GmailRejectedError):
        run(messageId="another")
    text = logs.text()
    assert len(sessions) == 2
    for secret in [*sessions, info["refresh_token"], "ya29.", "1//0", "GOCSPX", "confidential"]:
        assert secret not in text
    assert json.loads(text.splitlines()[0])["messageId"]
