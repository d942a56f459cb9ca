"""`Send bounce`, from the task's payload to SES."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import bouncer
import pytest
from botocore.exceptions import ClientError, HTTPClientError
from ses_mail.errors import (
    BounceRejectedError,
    BounceThrottledError,
    DeliveryInProgressError,
    EmailNotFoundError,
)

if TYPE_CHECKING:
    from local.ses import Ses
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock
    from tests.fixtures.lambda_ import LambdaContext, Logs

Run = Callable[..., dict[str, Any]]
EMAIL = b"From: jane@partner.example\r\nSubject: confidential\r\n\r\nbody"


@pytest.fixture
def environment(aws: "Aws", time: "Clock", logs: "Logs", monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DELIVERIES_TABLE": aws.deliveries_table,
        "DOMAINS": "example.com,Bücher.example",
        "RETENTION_DAYS": "90",
        "BOUNCES_PER_SENDER_PER_HOUR": "2",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run(
    environment: None,
    aws: "Aws",
    ses: "Ses",
    time: "Clock",
    context: "LambdaContext",
    event: Callable[..., Any],
) -> Run:
    context.milliseconds = 60_000
    email = aws.put_email(EMAIL)

    def invoke(**changes: Any) -> dict[str, Any]:
        given = event("bouncer", **{"email": email, **changes})
        ses.take_in(given["messageId"], given["source"], given["delivery"]["recipients"], time.now)
        return bouncer.handler(given, context)

    return invoke


def test_the_sample_event(run: Run, ses: "Ses", logs: "Logs") -> None:
    answer = run()
    (bounce,) = ses.bounces
    assert answer == {"outcome": "bounced", "resultId": bounce["id"], "reason": ""}
    assert bounce["recipients"] == ["info@example.com"]
    assert bounce["messageId"] == "o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1"
    assert logs.metrics() == {"Bounced": 1}
    (line,) = logs.read("Action result")
    assert (line["action"], line["result"], line["resultId"]) == ("bounce", "bounced", bounce["id"])
    assert line["recipients"] == ["info@example.com"]
    assert "confidential" not in logs.text()


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [("force", "bounced", ""), ("receivedAt", "suppressed", "too-old")],
)
def test_an_optional_field_is_absent(
    environment: None,
    aws: "Aws",
    ses: "Ses",
    time: "Clock",
    context: "LambdaContext",
    event: Callable[..., Any],
    name: str,
    outcome: str,
    reason: str,
) -> None:
    sample = event("bouncer", email=aws.put_email(EMAIL))
    ses.take_in(sample["messageId"], sample["source"], ["info@example.com"], time.now)
    del sample[name]
    answer = bouncer.handler(sample, context)
    assert (answer["outcome"], answer["reason"]) == (outcome, reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": ""}, "null-sender"),
        ({"source": "x@example.com"}, "own-sender"),
        ({"source": "x@xn--bcher-kva.example"}, "own-sender"),
        ({"source": "postmaster@partner.example"}, "daemon-sender"),
    ],
)
def test_suppressed_is_an_outcome(
    run: Run, aws: "Aws", logs: "Logs", changes: dict[str, Any], reason: str
) -> None:
    requests = aws.wire.count("ses")
    assert run(**changes) == {"outcome": "suppressed", "resultId": "", "reason": reason}
    assert requests.total() == 0
    assert logs.metrics() == {"BouncesSuppressed": 1}
    (line,) = logs.read("Action result")
    assert (line["result"], line["reason"]) == ("suppressed", reason)


def test_the_limit_per_sender(run: Run, ses: "Ses") -> None:
    answers = [run(messageId=f"m{n}") for n in range(3)]
    assert [a["outcome"] for a in answers] == ["bounced", "bounced", "suppressed"]
    assert answers[2]["reason"] == "sender-limit"
    assert len(ses.bounces) == 2


@pytest.mark.parametrize(
    ("fault", "error", "code", "then"),
    [
        ((400, "Throttling"), BounceThrottledError, "Throttling", "bounced"),
        ((400, "MessageRejected"), BounceRejectedError, "MessageRejected", "bounced"),
        ((403, "AccessDenied"), ClientError, "AccessDenied", "bounced"),
        ((500, "InternalFailure"), ClientError, "InternalFailure", None),
        ("lost", HTTPClientError, "ConnectionClosedError", None),
    ],
)
def test_errors(
    run: Run,
    logs: "Logs",
    aws: "Aws",
    fault: Any,
    error: type[Exception],
    code: str,
    then: str | None,
) -> None:
    if fault == "lost":
        aws.wire.lose_answer("ses.SendBounce", times=1)
    else:
        aws.wire.answer("ses.SendBounce", *fault, times=1)
    with pytest.raises(error):
        run()
    (line,) = logs.read("Action result")
    assert (line["result"], line["error"]) == ("failed", code)
    assert line["recipients"] == ["info@example.com"]
    assert logs.metrics() == {}
    if then:
        assert run()["outcome"] == then
    else:
        with pytest.raises(DeliveryInProgressError):
            run()


def test_maybe_sent_is_never_sent_again(run: Run, aws: "Aws", ses: "Ses", time: "Clock") -> None:
    aws.wire.lose_answer("ses.SendBounce", times=1)
    with pytest.raises(HTTPClientError):
        run()
    time.advance(60 + 30)
    with pytest.raises(DeliveryInProgressError):
        run()
    time.advance(1)
    assert run()["reason"] == "maybe-sent"
    assert len(ses.bounces) == 1


def test_the_email_has_expired(run: Run, aws: "Aws") -> None:
    with pytest.raises(EmailNotFoundError):
        run(email={"bucket": aws.bucket, "key": "emails/none"})
