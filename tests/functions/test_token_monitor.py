"""What the monitor tells about tokens, and when it has parked mail redriven."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import token_monitor
from botocore.exceptions import ClientError
from ses_mail import clients, monitor_tokens
from ses_mail.credentials import parameter_name

from local.google import Fault, Google

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock
    from tests.fixtures.lambda_ import LambdaContext, Logs

ANNA, BEN = "anna@example.com", "ben@example.com"
HOUR = 3600


class Monitor:
    """The handler, with SSM Automation answered in AWS's place."""

    def __init__(self, aws: "Aws", google: Google, context: "LambdaContext", sample: Any) -> None:
        self.aws, self.google = aws, google
        self.started: list[dict[str, list[str]]] = []
        self._context, self._sample = context, sample
        aws.wire.reply("ssm.StartAutomationExecution", self._start)

    def _start(self, request: Any) -> tuple[int, bytes]:
        self.started.append(json.loads(request.body)["Parameters"])
        return 200, json.dumps({"AutomationExecutionId": f"id-{len(self.started)}"}).encode()

    def run(self) -> dict[str, Any]:
        return dict(token_monitor.handler(self._sample, self._context))

    def put(self, mailbox: str, default: bool = False) -> str:
        """Put a new token of the mailbox; the parameter's name."""
        name = None if default else parameter_name(self.aws.mailbox_token_prefix, mailbox)
        return self.aws.put_token(self.google.add_mailbox(mailbox), name)

    def park(self) -> None:
        url = self.aws.gmail_forwarder_dlq_url
        clients.sqs().send_message(QueueUrl=url, MessageBody="letter")


@pytest.fixture
def monitor(
    aws: "Aws",
    google: Google,
    context: "LambdaContext",
    logs: "Logs",
    time: "Clock",
    event: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Monitor:
    for name, value in {
        "DELIVERIES_TABLE": aws.deliveries_table,
        "TOKEN_PARAMETER": aws.token_parameter,
        "MAILBOX_TOKEN_PREFIX": aws.mailbox_token_prefix,
        "GMAIL_FORWARDER_DLQ_URL": aws.gmail_forwarder_dlq_url,
        "INPUT_QUEUE_URL": "input",
        "REDRIVE_DOCUMENT": "document",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(monitor_tokens, "_TIMEOUT", 1)
    return Monitor(aws, google, context, event("token_monitor"))


def test_one_line_and_one_value_per_token(monitor: Monitor, logs: "Logs") -> None:
    default, own = monitor.put(ANNA, default=True), monitor.put(BEN)
    monitor.google.revoke(BEN)
    assert monitor.run() == {"checked": {default: "valid", own: "invalid"}, "automation": ""}
    lines = [(e["parameter"], e["result"], e["error"]) for e in logs.read("Token check")]
    assert lines == [(default, "valid", ""), (own, "invalid", "invalid_grant")]
    assert logs.values("GmailTokenValid") == [1, 0]


def test_no_token_at_all(monitor: Monitor, logs: "Logs") -> None:
    monitor.run()
    (line,) = logs.read("Token check")
    assert (line["result"], line["error"]) == ("invalid", "missing_credentials")
    assert logs.values("GmailTokenValid") == [0]


def test_trouble_with_one_token_is_told_and_hides_no_other(monitor: Monitor, logs: "Logs") -> None:
    default, own = monitor.put(ANNA, default=True), monitor.put(BEN)
    monitor.park()
    monitor.google.faults.append(Fault("token", 500, mailbox=ANNA, times=None))
    with pytest.raises(token_monitor.TokenCheckError, match=f"1 tokens, first {default}"):
        monitor.run()
    assert [e["result"] for e in logs.read("Token check")] == ["unknown", "valid"]
    assert logs.values("GmailTokenValid") == [1]
    assert len(monitor.started) == 1, "the other token's mail need not wait"
    assert set(monitor.aws.token_checks()) == {own}


def test_mail_waits_until_the_token_is_good(monitor: Monitor, logs: "Logs", time: "Clock") -> None:
    default = monitor.put(ANNA, default=True)
    monitor.google.revoke(ANNA)
    monitor.park()
    for _ in range(5):
        monitor.run()
        time.advance(HOUR)
    assert monitor.started == []
    monitor.put(ANNA, default=True)
    assert monitor.run()["automation"] == "id-1"
    assert monitor.started == [
        {
            "DLQUrl": [monitor.aws.gmail_forwarder_dlq_url],
            "SourceQueueUrl": ["input"],
            "Error": ["GmailTokenError"],
        }
    ]
    (line,) = logs.read("Token redrive")
    assert (line["automationExecutionId"], line["parameters"]) == ("id-1", [default])


def test_mail_that_the_token_does_not_mend_is_not_redriven_for_ever(
    monitor: Monitor, time: "Clock"
) -> None:
    """A letter that comes back each time, as with a delegation that Google refuses."""
    monitor.put(ANNA, default=True)
    monitor.put(BEN)
    monitor.google.revoke(BEN)
    monitor.park()
    for _ in range(48):
        monitor.run()
        time.advance(HOUR)
    assert len(monitor.started) == 3


def test_an_automation_that_cannot_start_is_an_error_and_starts_next_time(
    monitor: Monitor, logs: "Logs", time: "Clock"
) -> None:
    monitor.put(ANNA, default=True)
    monitor.park()
    aws = monitor.aws
    aws.wire.cut()
    aws.wire.answer("ssm.StartAutomationExecution", 400, "AccessDeniedException")
    with pytest.raises(ClientError, match="AccessDenied"):
        monitor.run()
    assert logs.values("GmailTokenValid") == [1]
    aws.wire.cut()
    aws.wire.reply("ssm.StartAutomationExecution", monitor._start)
    time.advance(HOUR)
    assert monitor.run()["automation"] == "id-1"


def test_no_secret_in_logs_or_records(monitor: Monitor, logs: "Logs") -> None:
    values = [monitor.google.add_mailbox(ANNA), monitor.google.add_mailbox(BEN)]
    account = monitor.google.add_service_account([BEN])
    prefix = monitor.aws.mailbox_token_prefix
    monitor.aws.put_token(values[0])
    monitor.google.revoke(ANNA)
    monitor.aws.put_token(values[1], f"{prefix}ben")
    monitor.aws.put_token(account, f"{prefix}service")
    monitor.aws.put_token("1//no-json-at-all", f"{prefix}broken")
    monitor.park()
    monitor.run()
    told = logs.text() + repr(monitor.aws.token_checks()) + repr(monitor.started)
    secrets = [value[name] for value in values for name in ("refresh_token", "client_secret")]
    lines = account["private_key"].splitlines()[1:-1]
    for secret in [*secrets, *lines, "1//no-json-at-all", "ya29."]:
        assert secret not in told


def test_the_sample_event_is_of_a_token(event: Callable[..., Any]) -> None:
    sample = event("token_monitor")
    assert sample["resources"][0].endswith(f":parameter{sample['detail']['name']}")
