"""What operators see of a run: alarms fire for their cause and for nothing else, whatever an alarm,
a widget or a saved query reads is really there, and one messageId finds everything.

Each cause starts with no metrics; the hourly checks run first, or the token alarm would fire.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.exceptions import JsonRESTError
from moto.dynamodb.exceptions import DynamodbException
from moto.dynamodb.responses import DynamoHandler
from moto.stepfunctions.responses import StepFunctionResponse

from local.google import Fault
from local.iam import ACCOUNT, REGION
from local.metrics import Reading
from tests.template.contract import FUNCTIONS
from tests.template.monitoring import (
    INSIGHTS_FIELDS,
    LAMBDA_FIELDS,
    STATES_FIELDS,
    Metric,
    Monitoring,
    Query,
)

from .conftest import ROOT
from .kit import Post, email, refuse

TIME_FACTOR = 0.004
PARAMETERS = {"HighVolumePerHour": "30"}

SERVICES = [module.replace("_", "-") for module in FUNCTIONS.values()]
TASKS = ["fetcher", "router", "gmail-forwarder", "bouncer"]
MONITORING = Monitoring(
    ROOT,
    {
        "Environment": "test",
        "AlarmEmail": "",
        "HighVolumePerHour": 30,
        "RunbookUrl": "runbooks/OPERATIONS.md",
    },
)
TOKEN_INVALID = "ses-mail-gmail-token-invalid"


class Stage:
    """The cloud, with what a cause needs beyond the kit."""

    def __init__(self, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
        self.post = post
        self.cloud = post.cloud
        self.monkeypatch = monkeypatch
        self.seen: set[Metric] = set()
        self.lines: dict[str, list[dict[str, Any]]] = {}

    def alarms(self, reading: Reading = Reading(), **later: float) -> set[str]:  # noqa: B008
        """Names without the environment, now or so much later."""
        at = datetime.now(UTC) + timedelta(**later)
        return {name.removesuffix("-test") for name in self.cloud.metrics.alarms(at, reading)}

    def alarms_late(self) -> set[str]:
        """The same, seen by somebody for whom all metrics are 15 minutes late."""
        quarter = timedelta(minutes=15)
        return self.alarms(Reading(late=quarter, extra=0), minutes=15)

    def passed(self, **ago: float) -> None:
        """Whatever was measured by now happened that long ago."""
        self.cloud.metrics.collect(datetime.now(UTC) - timedelta(**ago))

    def forget(self) -> None:
        """Start anew, with every metric noted that there was."""
        backend = cloudwatch_backends[ACCOUNT][REGION]
        for datum in backend.get_all_metrics():
            ((dimension, value),) = ((d.name, d.value) for d in datum.dimensions)
            self.seen.add(Metric(datum.namespace, datum.name, dimension, value, ""))
        self.cloud.metrics._data.clear()
        backend.metric_data.clear()

    def put(self, namespace: str, name: str, dimension: str, value: str) -> None:
        """A metric that only AWS publishes."""
        self.cloud.client("cloudwatch").put_metric_data(
            Namespace=namespace,
            MetricData=[
                {
                    "MetricName": name,
                    "Dimensions": [{"Name": dimension, "Value": value}],
                    "Value": 1,
                }
            ],
        )


class Cause(NamedTuple):
    """Something that happens, and the alarms that it raises: these and no others."""

    happens: Callable[[Stage], None]
    raises: set[str]
    checked: bool = True  # the hourly checks ran

    @property
    def title(self) -> str:
        return self.happens.__name__.replace("_", " ")


# -- causes ----------------------------------------------------------------------------------------


def nothing_is_wrong(stage: Stage) -> None:
    post = stage.post
    forwarded, _ = post.forwarded()
    sent = [
        post.send(forwarded),
        post.send(forwarded, verdicts={"spam": "FAIL"}),
        post.send(post.address("bounce")),
        post.send(post.address("bounce"), sender=""),
        post.send(post.address("store"), post.address("drop")),
        post.send(forwarded, verdicts={"virus": "FAIL"}),
    ]
    for message_id in sent:
        post.delivered(message_id)
    post.cloud.publish(post.cloud.notification(sent[0]))
    post.queue({"mail": {"messageId": "AMAZON_SES_SETUP_NOTIFICATION"}, "receipt": {}})
    post.cloud.wait_idle()


def one_temporary_error(stage: Stage) -> None:
    recipient, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="start", mailbox=mailbox))
    stage.post.delivered(stage.post.send(recipient))


def a_mailbox_without_credentials(stage: Stage) -> None:
    mailbox = stage.post.mailbox(credentials=False)
    stage.post.dead_lettered(stage.post.send(stage.post.address("forward-to-gmail", mailbox)))


def somebody_peeks_at_a_dead_letter(stage: Stage) -> None:
    a_mailbox_without_credentials(stage)
    sqs, url = stage.cloud.client("sqs"), stage.cloud.resource("GmailForwarderDlq")
    (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=300)["Messages"]
    stage.forget()  # all that was measured before
    raised = {"ses-gmail-forwarder-dlq-messages", TOKEN_INVALID}
    assert stage.alarms() == stage.alarms_late() == raised
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    # Over when the runbook says, which is 20 minutes: an empty queue is measured each minute.
    for minute in range(1, 22):
        stage.passed(minutes=-minute)
    assert stage.alarms(minutes=19) == raised
    assert stage.alarms(minutes=21) == {TOKEN_INVALID}
    stage.forget()


def ses_refuses_a_bounce(stage: Stage) -> None:
    stage.cloud.ses.faults.append(("MessageRejected", 1))
    stage.post.dead_lettered(stage.post.send(stage.post.address("bounce")))


def a_message_that_is_no_notification(stage: Stage) -> None:
    stage.post.queue("hello")
    stage.cloud.wait_idle()


def an_email_that_is_not_in_the_bucket(stage: Stage) -> None:
    notification = stage.post.store(stage.post.address("store"))
    action = notification["receipt"]["action"]
    bucket, key = action["bucketName"], action["objectKey"]
    stage.cloud.client("s3").delete_object(Bucket=bucket, Key=key)
    stage.cloud.publish(notification)
    stage.post.dead_lettered(notification["mail"]["messageId"])


def the_table_refuses_once(stage: Stage) -> None:
    denied = DynamodbException("AccessDeniedException", "not now")
    with stage.monkeypatch.context() as monkeypatch:
        refuse(monkeypatch, DynamoHandler, "batch_get_item", denied, lambda self: True, times=1)
        stage.post.delivered(stage.post.send(stage.post.address("store")))


def a_malformed_rule(stage: Stage) -> None:
    stage.post.dead_lettered(stage.post.send(stage.post.address("typo")))


def the_starter_is_killed(stage: Stage) -> None:
    pool = stage.cloud.runtime._pools["ses-mail-starter-test"]
    # The warmest one, which takes the next batch, and stands still until it has it.
    warmest = pool.idle[-1]
    os.kill(warmest.pid, signal.SIGSTOP)

    def has_the_batch() -> bool:
        with pool.lock:
            return warmest not in pool.idle

    message_id = stage.post.send(stage.post.address("store"))
    stage.post.until(has_the_batch)
    os.kill(warmest.pid, signal.SIGKILL)
    stage.post.delivered(message_id)


def executions_cannot_be_started(stage: Stage) -> None:
    denied = JsonRESTError("AccessDeniedException", "not now")
    with stage.monkeypatch.context() as monkeypatch:
        refuse(monkeypatch, StepFunctionResponse, "start_execution", denied, lambda self: True, 3)
        stage.post.delivered(stage.post.send(stage.post.address("store")))


def the_pipe_stands_still(stage: Stage) -> None:
    stage.cloud.pipe.pause()
    message_id = stage.post.send(stage.post.address("store"))
    stage.post.until(lambda: "ses-email-input-queue-age" in stage.alarms())
    stage.cloud.pipe.resume()
    stage.post.delivered(message_id)


def nobody_has_a_rule(stage: Stage) -> None:
    stage.post.delivered(stage.post.send("nobody@example.com"))


def an_email_goes_round(stage: Stage) -> None:
    stage.post.delivered(stage.post.send(stage.post.address("store"), raw=email(26)))


def a_surge_of_forged_senders(stage: Stage) -> None:
    recipient = stage.post.address("bounce")
    for _ in range(50):
        stage.post.send(recipient, sender="")
    stage.cloud.wait_idle(240)


def abort(stage: Stage) -> None:
    """Abort an execution that waits for a further attempt; nobody sweeps yet."""
    recipient, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="start", mailbox=mailbox, times=None))
    message_id = stage.post.send(recipient)
    failing = {"errorType": "GmailTemporaryError"}
    stage.post.until(
        lambda: any(
            line["messageId"] == message_id and failing.items() <= line.items()
            for line in stage.cloud.logs("gmail-forwarder")
            if "messageId" in line
        )
    )
    (execution,) = stage.cloud.executions(message_id)
    stage.cloud.client("stepfunctions").stop_execution(executionArn=execution["executionArn"])
    stage.cloud.google.faults.clear()
    stage.cloud.wait_idle()


def an_execution_is_aborted(stage: Stage) -> None:
    abort(stage)
    stage.cloud.events.tick()


def an_aborted_execution_cannot_be_looked_at(stage: Stage) -> None:
    abort(stage)
    denied = JsonRESTError("AccessDeniedException", "not now")
    with stage.monkeypatch.context() as monkeypatch:
        refuse(monkeypatch, StepFunctionResponse, "describe_execution", denied, lambda _: True, 1)
        stage.cloud.events.tick()


def an_old_email_is_still_being_retried(stage: Stage) -> None:
    recipient, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="start", mailbox=mailbox))
    two_hours_ago = stage.cloud.now() - 2 * 3600
    stage.post.delivered(stage.post.send(recipient, timestamp=two_hours_ago))


def the_forwarder_fails_for_half_an_hour(stage: Stage) -> None:
    mailbox = stage.post.mailbox(credentials=False)
    recipient = stage.post.address("forward-to-gmail", mailbox)
    for _ in range(10):
        stage.post.send(recipient)
    stage.cloud.wait_idle(120)
    stage.passed(minutes=20)
    assert "ses-mail-lambda-gmail-forwarder-errors" not in stage.alarms()
    for _ in range(10):
        stage.post.send(recipient)
    stage.cloud.wait_idle(120)


def a_token_is_revoked(stage: Stage) -> None:
    _, mailbox = stage.post.forwarded()
    stage.cloud.google.revoke(mailbox)
    stage.cloud.events.tick()
    stage.cloud.add_mailbox(mailbox)


def the_token_monitor_is_silent(stage: Stage) -> None:
    pass


def google_does_not_answer_the_token_monitor(stage: Stage) -> None:
    _, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="token", mailbox=mailbox, times=None))
    stage.cloud.events.tick()


def ses_gives_up(stage: Stage) -> None:
    stage.put("AWS/SES", "PublishExpired", "RuleName", "ses-mail-test")


def a_dead_letter_lies_for_three_days(stage: Stage) -> None:
    a_message_that_is_no_notification(stage)
    for hour in range(69, 1, -1):
        stage.passed(hours=hour)
    assert "ses-mail-dlq-age" not in stage.alarms(), "not yet three days"
    stage.passed(hours=1)
    stage.cloud.events.tick()


CAUSES = [
    Cause(nothing_is_wrong, set()),
    Cause(one_temporary_error, set()),
    Cause(a_mailbox_without_credentials, {"ses-gmail-forwarder-dlq-messages"}),
    Cause(somebody_peeks_at_a_dead_letter, {TOKEN_INVALID}),
    Cause(ses_refuses_a_bounce, {"ses-bouncer-dlq-messages", "ses-mail-lambda-bouncer-errors"}),
    Cause(a_message_that_is_no_notification, {"ses-email-input-dlq-messages"}),
    Cause(
        an_email_that_is_not_in_the_bucket,
        {"ses-email-input-dlq-messages", "ses-mail-lambda-fetcher-errors"},
    ),
    Cause(the_table_refuses_once, {"ses-mail-lambda-router-errors"}),
    Cause(a_malformed_rule, {"ses-email-input-dlq-messages"}),
    Cause(the_starter_is_killed, {"ses-mail-lambda-starter-errors"}),
    Cause(executions_cannot_be_started, {"ses-mail-starts-failed", "eventbridge-pipes-failures"}),
    Cause(the_pipe_stands_still, {"ses-email-input-queue-age"}),
    Cause(nobody_has_a_rule, {"ses-mail-unrouted"}),
    Cause(an_email_goes_round, {"ses-mail-loops"}),
    Cause(a_surge_of_forged_senders, {"ses-mail-bounces-suppressed", "ses-mail-high-email-volume"}),
    Cause(an_execution_is_aborted, {"ses-mail-executions-failed", "ses-email-input-dlq-messages"}),
    Cause(an_old_email_is_still_being_retried, {"ses-mail-delivery-delayed"}),
    Cause(
        the_forwarder_fails_for_half_an_hour,
        {"ses-mail-lambda-gmail-forwarder-errors", "ses-gmail-forwarder-dlq-messages"},
    ),
    Cause(a_token_is_revoked, {TOKEN_INVALID}),
    Cause(the_token_monitor_is_silent, {TOKEN_INVALID}, checked=False),
    Cause(google_does_not_answer_the_token_monitor, {"ses-mail-lambda-token-monitor-errors"}),
    Cause(
        an_aborted_execution_cannot_be_looked_at,
        {
            "ses-mail-lambda-sweeper-errors",
            "ses-mail-executions-failed",
            "ses-email-input-dlq-messages",
        },
    ),
    Cause(ses_gives_up, {"ses-mail-publish-expired"}),
    Cause(a_dead_letter_lies_for_three_days, {"ses-mail-dlq-age", "ses-email-input-dlq-messages"}),
]


@dataclass(frozen=True)
class Run:
    """raised by each cause's title, at once and with late metrics; what was measured and logged
    meanwhile, by service."""

    raised: dict[str, set[str]]
    late: dict[str, set[str]]
    seen: set[Metric]
    lines: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(post: Post) -> Iterator[Run]:
    """Everything happens, one after the other."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = Stage(post, monkeypatch)
        post.mailbox()
        raised, late = {}, {}
        for cause in CAUSES:
            stage.forget()
            if cause.checked:
                stage.cloud.events.tick()
            cause.happens(stage)
            raised[cause.title] = stage.alarms()
            late[cause.title] = stage.alarms_late()
            stage.cloud.google.faults.clear()
            post.take()
        stage.forget()
        yield Run(raised, late, stage.seen, {s: post.cloud.logs(s) for s in SERVICES})


# -- what must hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.title)
def test_alarms(cause: Cause, run: Run) -> None:
    assert run.raised[cause.title] == cause.raises
    assert run.late[cause.title] == cause.raises


def test_every_alarm_has_fired() -> None:
    fired = set().union(*(cause.raises for cause in CAUSES))
    assert fired == {name.removesuffix("-test") for name in MONITORING.alarms}


def test_every_metric_was_published(run: Run) -> None:
    published = {metric._replace(where="") for metric in run.seen}
    arn = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:ses-mail-process-email-test"
    never = {
        # The machine itself has no time-out.
        ("AWS/States", "ExecutionsTimedOut"),
    }
    missing = {
        metric
        for metric in MONITORING.metrics
        if (metric.namespace, metric.name) not in never
        and metric._replace(
            where="", value=arn if metric.namespace == "AWS/States" else metric.value
        )
        not in published
    }
    assert missing == set()


@pytest.mark.parametrize("query", MONITORING.queries, ids=lambda query: query.name)
def test_every_field_of_a_query_was_logged(query: Query, run: Run) -> None:
    services = [s for s in SERVICES if f"/aws/lambda/ses-mail-{s}-test" in query.log_groups]
    lines = [line for service in services for line in run.lines[service] if "_aws" not in line]
    logged = {name for line in lines for name in line}
    assert query.fields - logged - INSIGHTS_FIELDS - LAMBDA_FIELDS - STATES_FIELDS == set()
    said = {value for line in lines for value in line.values() if isinstance(value, str)}
    assert query.texts - {"MESSAGE_ID", "REPORT"} - said == set()


def test_one_message_id_finds_everything(post: Post, run: Run) -> None:
    recipient, mailbox = post.forwarded()
    message_id = post.send(recipient)
    execution = post.delivered(message_id)
    found = {
        service: [line for line in post.cloud.logs(service) if line.get("messageId") == message_id]
        for service in SERVICES
    }
    assert {s: [line["message"] for line in lines] for s, lines in found.items() if lines} == {
        "starter": ["Start result"],
        "fetcher": ["Email fetched"],
        "router": ["Routing decision"],
        "gmail-forwarder": ["Action result"],
    }
    assert {line["executionArn"] for lines in found.values() for line in lines} == {execution.arn}
    assert execution.name == message_id
    (copy,) = post.cloud.google.messages(mailbox)
    assert found["gmail-forwarder"][0]["resultId"] == copy.id


@pytest.mark.parametrize("service", TASKS)
def test_every_line_of_a_task_names_email_and_execution(service: str, run: Run) -> None:
    lines = [line for line in run.lines[service] if "message" in line]
    assert lines
    assert all(line["messageId"] and line["executionArn"] for line in lines)


EVERY_LINE = {
    *("level", "location", "message", "timestamp", "service", "xray_trace_id"),
    *("aws_request_id", "messageId", "executionArn"),
}
DECISION = {"recipient", "action", "target", "matchedRule", "reason"}
RESULT = {"recipients", "action", "target", "result"}


def test_contract_lines_have_exactly_their_fields(run: Run) -> None:
    lines = [line for service in TASKS for line in run.lines[service]]
    decisions = [set(line) for line in lines if line.get("message") == "Routing decision"]
    assert {frozenset(fields - EVERY_LINE) for fields in decisions} == {frozenset(DECISION)}
    results = [line for line in lines if line.get("message") == "Action result"]
    kinds = {(line["result"] == "failed", frozenset(set(line) - EVERY_LINE)) for line in results}
    assert kinds == {
        (False, frozenset(RESULT | {"resultId", "reason"})),
        (True, frozenset(RESULT | {"error", "errorType", "cause"})),
    }
    assert {line["result"] for line in results} == {
        *("delivered", "bounced", "suppressed", "stored", "dropped", "failed"),
    }


def test_operators_tools_show_it(post: Post, run: Run) -> None:
    """Through the API, as `aws` asks."""
    cloudwatch, logs = post.cloud.client("cloudwatch"), post.cloud.client("logs")
    alarms = cloudwatch.describe_alarms()["MetricAlarms"]
    assert {a["AlarmName"] for a in alarms} == set(MONITORING.alarms)
    topic = f"arn:aws:sns:{REGION}:{ACCOUNT}:ses-mail-alarms-test"
    assert {tuple(a["AlarmActions"]) for a in alarms} == {(topic,)}
    raised = cloudwatch.describe_alarms(StateValue="ALARM")["MetricAlarms"]
    assert [a["AlarmName"] for a in raised] == [f"{TOKEN_INVALID}-test"], "nothing was checked"
    body = cloudwatch.get_dashboard(DashboardName="ses-mail-dashboard-test")["DashboardBody"]
    assert '"Email Processing Overview"' in body
    queries = logs.describe_query_definitions(queryDefinitionNamePrefix="ses-mail/test/")
    assert [q["name"] for q in queries["queryDefinitions"]] == [
        q.name for q in MONITORING.queries if q.name.startswith("ses-mail/")
    ]
    post.delivered(post.send(post.forwarded()[0]))
    now = datetime.now(UTC)
    (counted,) = cloudwatch.get_metric_statistics(
        Namespace="SESMail/test",
        MetricName="Forwarded",
        Dimensions=[{"Name": "service", "Value": "gmail-forwarder"}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=1),
        Period=3600,
        Statistics=["Sum"],
    )["Datapoints"]
    assert counted["Sum"] >= 1
