"""What operators see of a run: alarms fire for their cause and for nothing else, whatever an alarm,
a widget or a saved query reads is really there, and one messageId finds everything.

Each cause starts with no metrics; the hourly checks run first, or the token alarm would fire.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from local.iam import ACCOUNT, REGION
from tests.template.contract import FUNCTIONS
from tests.template.monitoring import (
    INSIGHTS_FIELDS,
    LAMBDA_FIELDS,
    STATES_FIELDS,
    Metric,
    Query,
)

from .causes import (
    MONITORING,
    PARAMETERS,  # noqa: F401  of this module's cloud
    TOKEN_INVALID,
    Stage,
    a_dead_letter_lies_for_three_days,
    a_mailbox_without_credentials,
    a_malformed_rule,
    a_message_that_is_no_notification,
    a_surge_of_forged_senders,
    a_token_is_revoked,
    an_aborted_execution_cannot_be_looked_at,
    an_email_goes_round,
    an_email_that_is_not_in_the_bucket,
    an_execution_is_aborted,
    an_old_email_is_still_being_retried,
    executions_cannot_be_started,
    google_does_not_answer_the_token_monitor,
    nobody_has_a_rule,
    nothing_is_wrong,
    one_temporary_error,
    ses_gives_up,
    ses_refuses_a_bounce,
    somebody_peeks_at_a_dead_letter,
    the_forwarder_fails_for_half_an_hour,
    the_pipe_stands_still,
    the_starter_is_killed,
    the_table_refuses_once,
    the_token_monitor_is_silent,
)
from .kit import Post

TIME_FACTOR = 0.004

SERVICES = [module.replace("_", "-") for module in FUNCTIONS.values()]
TASKS = ["fetcher", "router", "gmail-forwarder", "bouncer"]


class Cause(NamedTuple):
    """Something that happens, and the alarms that it raises: these and no others."""

    happens: Callable[[Stage], None]
    raises: set[str]
    checked: bool = True  # the hourly checks ran

    @property
    def title(self) -> str:
        return self.happens.__name__.replace("_", " ")


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
def run(post: Post) -> Run:
    """Everything happens, one after the other."""
    stage = Stage(post)
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
    return Run(raised, late, stage.seen, {s: post.cloud.logs(s) for s in SERVICES})


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
