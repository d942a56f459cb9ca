"""`Fetch email`: what the workflow decides on, and emails that are not there."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fetcher
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from ses_mail.errors import EmailNotFoundError, InvalidNotificationError

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.lambda_ import LambdaContext, Logs

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(
    aws: "Aws",
    context: "LambdaContext",
    logs: "Logs",
    event: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """`run(key)` with the sample event, whose email lies in this test's bucket."""
    monkeypatch.setenv("BUCKET", aws.bucket)

    def invoke(key: str, bucket: str = "") -> dict[str, Any]:
        action = {"type": "S3", "bucketName": bucket or aws.bucket, "objectKey": key}
        return fetcher.handler(event("fetcher", action=action), context)

    return invoke


def hops(number: int) -> bytes:
    return b"".join(b"Received: from x%d\r\n by y\r\n" % n for n in range(number))


LINE = b"X: %s\r\n" % (b"x" * 1019)  # 1 KiB
LONG = LINE * 600


@pytest.mark.parametrize(
    ("raw", "received"),
    [
        (hops(2) + b"Subject: x\r\n\r\nReceived: in the body\r\n", 2),
        (hops(26) + b"\r\n", 26),
        (hops(3).replace(b"\r\n", b"\n") + b"\nReceived: body", 3),
        (hops(3).replace(b"\r\n", b"\r\r\n") + b"\r\r\nReceived: body", 3),
        (hops(3).replace(b"\r\n", b"\r") + b"\rReceived: body", 3),
        # With an LF anywhere, two bare CR do not end the headers: a guard must see what follows.
        (hops(3).replace(b"\r\n", b"\r") + b"\rReceived: body\n", 4),
        (b"Subject: x\r\n\r\n", 0),
        (b"", 0),
        (b"\r\nReceived: body", 0),
        (b"no header at all", 0),
        (LONG + hops(4) + b"\r\nReceived: body", 4),
        # No mail system passes on more than 2 MiB of headers.
        (LINE * 1900 + hops(4) + b"\r\n", 4),
        (LINE * 2200 + hops(4) + b"\r\n", 0),
        # The blank line lies across two pieces that are read.
        (b"X: %s\r\n" % (b"x" * (64 * 1024 - 7)) + b"\r\nReceived: body", 0),
        (b"X: %s\r\n" % (b"x" * (64 * 1024 - 6)) + b"\r\nReceived: body", 0),
        (b"X: %s\r\n" % (b"x" * (64 * 1024 - 5)) + b"\r\nReceived: body", 0),
    ],
    ids=[
        "two hops",
        "a loop",
        "LF",
        "CR CR LF",
        "CR alone",
        "CR and an LF",
        "none",
        "empty",
        "no headers",
        "rubbish",
        "600 KB of headers",
        "1.9 MB of headers",
        "2.2 MB of headers",
        "seam 1",
        "seam 2",
        "seam 3",
    ],
)
def test_what_is_told_of_an_email(
    run: Run, aws: "Aws", logs: "Logs", raw: bytes, received: int
) -> None:
    stored = aws.put_email(raw)
    assert run(stored["key"]) == {**stored, "received": received}
    assert logs.metrics() == {"EmailsFetched": 1}
    (line,) = logs.read("Email fetched")
    assert (line["size"], line["received"]) == (len(raw), received)


def test_only_the_headers_of_a_large_email_are_looked_at(run: Run, aws: "Aws") -> None:
    endless = b"Received: x\r\n" + b"x" * (3 * 1024 * 1024) + b"\r\nReceived: y\r\n\r\n"
    assert run(aws.put_email(endless)["key"])["received"] == 1
    counted = aws.wire.count("s3")
    large = b"Received: x\r\n\r\n" + bytes(8 * 1024 * 1024)
    assert run(aws.put_email(large)["key"])["size"] == len(large)
    assert counted == {"PutObject": 1, "GetObject": 1}


def test_a_missing_object(run: Run, aws: "Aws", logs: "Logs", context: "LambdaContext") -> None:
    with pytest.raises(EmailNotFoundError, match=f"no object emails/none in bucket {aws.bucket}"):
        run("emails/none")
    (line,) = logs.read("Action result")
    assert (line["result"], line["error"]) == ("failed", "EmailNotFoundError")
    assert line["action"] == context.function_name, "no delivery yet"
    assert line["aws_request_id"] == context.aws_request_id
    assert line["errorType"] == "EmailNotFoundError"
    assert "emails/none" in line["cause"]
    assert line["messageId"] == "o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1"
    assert line["executionArn"].endswith(":ses-mail-process-email-test:" + line["messageId"])


def test_a_missing_bucket(run: Run, monkeypatch: pytest.MonkeyPatch, aws: "Aws") -> None:
    monkeypatch.setenv("BUCKET", f"{aws.bucket}-gone")
    with pytest.raises(EmailNotFoundError, match=f"no bucket {aws.bucket}-gone"):
        run("emails/x", f"{aws.bucket}-gone")


def test_an_object_outside_our_bucket(run: Run, aws: "Aws") -> None:
    with pytest.raises(InvalidNotificationError, match="this stack's is"):
        run("emails/x", "somebody-elses")


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (503, "SlowDown")])
def test_other_errors_are_no_missing_email(
    run: Run, aws: "Aws", logs: "Logs", status: int, code: str
) -> None:
    """Without s3:ListBucket a missing key would be a 403, which is retried."""
    aws.wire.answer("s3.GetObject", status, code)
    with pytest.raises(ClientError, match=code):
        run("emails/x")
    assert logs.read("Action result")[0]["error"] == code


def test_a_lost_connection_is_retried_by_the_step(run: Run, aws: "Aws", logs: "Logs") -> None:
    aws.wire.lose_request("s3.GetObject")
    with pytest.raises(ConnectionClosedError):
        run("emails/x")
    assert logs.read("Action result")[0]["error"] == "ConnectionClosedError"


def test_a_message_full_of_control_characters(run: Run) -> None:
    with pytest.raises(InvalidNotificationError) as raised:
        run("emails/x", "\x1b[31m\x00\r\n" * 1000)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) == 1000
