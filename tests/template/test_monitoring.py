"""Alarms, dashboard and saved queries: their names, and that all they mention exists."""

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.template.contract import ACCOUNT, FUNCTIONS, Project
from tests.template.monitoring import (
    ALARM_ARN,
    AWS_METRICS,
    Metric,
    Monitoring,
)

ROOT = Path(__file__).parents[2]
RUNBOOK = "runbooks/OPERATIONS.md"
HOUR, DAY = 3600, 86400


class Alarm(NamedTuple):
    """respond, anchor: what its description ends with; the rest is when it fires: in `needed` of
    `periods` periods (test_alarms.py says why so)."""

    respond: str
    anchor: str
    statistic: str  # of a single metric, or of each part of a sum
    comparison: str
    threshold: float
    period: int
    needed: int
    periods: int
    missing: str = "notBreaching"


AT_ONCE, SOON, TODAY = (
    "Respond within 30 minutes.",
    "Respond within 1 hour.",
    "Respond within 2 hours.",
)
INFORMATIONAL = "Informational: verify that the traffic is expected."


def letters(anchor: str) -> Alarm:
    return Alarm(SOON, anchor, "Maximum", ">=", 1, 60, 1, 20)


def errors(function: str) -> Alarm:
    return Alarm(AT_ONCE, f"{function}-errors", "Sum", ">=", 1, 300, 1, 4)


def happened(respond: str, anchor: str) -> Alarm:
    return Alarm(respond, anchor, "Sum", ">=", 1, 300, 1, 4)


ALARMS = {
    "ses-email-input-dlq-messages": letters("dead-letters-in-the-input-dlq"),
    "ses-gmail-forwarder-dlq-messages": letters("dead-letters-in-the-forwarder-dlq"),
    "ses-bouncer-dlq-messages": letters("dead-letters-in-the-bouncer-dlq"),
    "ses-mail-dlq-age": Alarm(SOON, "dead-letters-left-lying", "Maximum", ">=", 1, HOUR, 70, 72),
    "ses-mail-lambda-starter-errors": errors("starter"),
    "ses-mail-lambda-fetcher-errors": errors("fetcher"),
    "ses-mail-lambda-router-errors": errors("router"),
    # Each temporary error of Gmail's is one.
    "ses-mail-lambda-gmail-forwarder-errors": Alarm(
        AT_ONCE, "gmail-forwarder-errors", "Sum", ">=", 10, 900, 2, 3
    ),
    "ses-mail-lambda-bouncer-errors": errors("bouncer"),
    "ses-mail-lambda-sweeper-errors": errors("sweeper"),
    "ses-mail-lambda-token-monitor-errors": errors("token-monitor"),
    "ses-email-input-queue-age": Alarm(TODAY, "high-queue-age", "Maximum", ">", 300, 300, 1, 4),
    "eventbridge-pipes-failures": Alarm(
        AT_ONCE, "eventbridge-pipes-failures", "Sum", ">=", 3, 900, 1, 2
    ),
    "ses-mail-high-email-volume": Alarm(
        INFORMATIONAL, "high-email-volume", "Sum", ">", 1000, HOUR, 1, 2
    ),
    "ses-mail-executions-failed": happened(SOON, "executions-died-uncaught"),
    "ses-mail-starts-failed": Alarm(AT_ONCE, "starts-failed", "Sum", ">=", 3, 900, 1, 2),
    "ses-mail-unrouted": happened(TODAY, "unrouted-email"),
    "ses-mail-bounces-suppressed": Alarm(TODAY, "bounces-suppressed", "Sum", ">=", 50, HOUR, 1, 2),
    "ses-mail-gmail-token-invalid": Alarm(
        SOON, "gmail-token-invalid", "Minimum", "<", 1, 2 * HOUR, 1, 1, missing="breaching"
    ),
    "ses-mail-loops": happened(TODAY, "mail-loops"),
    "ses-mail-publish-expired": happened(AT_ONCE, "ses-gave-up-publishing"),
    "ses-mail-delivery-delayed": Alarm(
        TODAY, "deliveries-delayed", "Maximum", ">", HOUR, HOUR, 1, 3
    ),
}
COMPARISONS = {
    ">=": "GreaterThanOrEqualToThreshold",
    ">": "GreaterThanThreshold",
    "<": "LessThanThreshold",
}
KEY_WIDGETS = [
    "Email Processing Overview",
    "Handler Success/Failure Rates",
    "Lambda Function Errors",
    "Queue Depths",
    "DLQ Message Counts",
    "Lambda Duration",
]
QUERIES = [
    "router-enrichment-errors",
    "gmail-forwarder-failures",
    "bouncer-failures",
    "routing-decision-analysis",
    "email-end-to-end-trace",
    "dlq-message-investigation",
    "performance-analysis",
]


@functools.cache
def stack(**parameters: Any) -> Project:
    return Project(ROOT, {"Environment": "test", "Domains": ["example.com"], **parameters})


def monitoring(**parameters: Any) -> Monitoring:
    """The nested stack with the parameters that the template hands over."""
    outer = stack(**parameters)
    return Monitoring(ROOT, outer.properties("Monitoring")["Parameters"])


NESTED = monitoring()
SERVICES = {
    stack().properties(name)["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]: module
    for name, module in FUNCTIONS.items()
}


def test_every_parameter_is_handed_over() -> None:
    handed = stack().resources["Monitoring"]["Properties"]["Parameters"]
    assert set(handed) == set(NESTED.template["Parameters"])
    assert all("Default" not in p for p in NESTED.template["Parameters"].values())


# -- alarms ----------------------------------------------------------------------------------------


def test_alarms_have_these_names() -> None:
    assert sorted(NESTED.alarms) == sorted(f"{name}-test" for name in ALARMS)
    prod = Monitoring(ROOT, {**NESTED.parameters, "Environment": "prod"})
    assert sorted(prod.alarms) == sorted(f"{name}-prod" for name in ALARMS)


def test_nothing_is_of_another_environment() -> None:
    prod = Monitoring(ROOT, {**NESTED.parameters, "Environment": "prod"})
    assert not re.findall(r"[\w/-]*\btest\b[\w/-]*", str([prod.alarms, prod.widgets, prod.queries]))


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_fires_when_it_should(name: str) -> None:
    expected, alarm = ALARMS[name], NESTED.alarms[f"{name}-test"]
    parts = [q["MetricStat"] for q in alarm.get("Metrics", []) if "MetricStat" in q]
    looks = {(p["Stat"], p["Period"]) for p in parts} or {(alarm["Statistic"], alarm["Period"])}
    assert looks == {(expected.statistic, expected.period)}
    assert alarm["ComparisonOperator"] == COMPARISONS[expected.comparison]
    assert float(alarm["Threshold"]) == expected.threshold
    assert alarm["EvaluationPeriods"] == expected.periods
    assert alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"]) == expected.needed
    assert alarm["TreatMissingData"] == expected.missing


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_says_what_to_do(name: str) -> None:
    expected, alarm = ALARMS[name], NESTED.alarms[f"{name}-test"]
    text = alarm["AlarmDescription"]
    assert text.endswith(f" {expected.respond} {RUNBOOK}#{expected.anchor}")
    assert len(text) <= 1024
    assert alarm["AlarmActions"] == [NESTED.arn("AlarmTopic")]
    assert alarm.get("ActionsEnabled", True)


def test_mail_deleted_at_10_days_is_said() -> None:
    retention = stack().properties("InputQueue")["MessageRetentionPeriod"] // DAY
    text = NESTED.alarms["ses-email-input-queue-age-test"]["AlarmDescription"]
    assert f"deletes it after {retention} days" in text


@pytest.mark.parametrize("name", ALARMS)
def test_sums_are_of_all_their_parts(name: str) -> None:
    queries = NESTED.alarms[f"{name}-test"].get("Metrics", [])
    sums = [q for q in queries if "Expression" in q]
    assert len(sums) == bool(queries)
    for query in sums:
        parts = query["Expression"].split(" + ")
        assert Counter(parts) == Counter(q["Id"] for q in queries if q is not query)
        assert [q["ReturnData"] for q in queries if q is not query] == [False] * len(parts)
        assert query.get("ReturnData", True)


def test_nothing_is_filled() -> None:
    """The newest minute would always be the filling, late metrics would never be seen."""
    assert "FILL" not in str([NESTED.alarms, NESTED.widgets])


def reads(where: str) -> set[tuple[str, str]]:
    """(metric, value of its dimension) of an alarm or widget."""
    return {(m.name, m.value) for m in NESTED.metrics if m.where == where}


@pytest.mark.parametrize(
    "queue", ["ses-email-input-dlq", "ses-gmail-forwarder-dlq", "ses-bouncer-dlq"]
)
def test_dead_letters_count_in_flight_too(queue: str) -> None:
    both = {
        (f"ApproximateNumberOfMessages{kind}", f"{queue}-test")
        for kind in ("Visible", "NotVisible")
    }
    assert reads(f"{queue}-messages-test") == both
    assert both <= reads("ses-mail-dlq-age-test")


def test_alarms_read_what_their_names_say() -> None:
    assert {name: reads(f"{name}-test") for name in ALARMS if "dlq" not in name} == {
        **{
            f"ses-mail-lambda-{function}-errors": {("Errors", f"ses-mail-{function}-test")}
            for function in (module.replace("_", "-") for module in FUNCTIONS.values())
        },
        "ses-email-input-queue-age": {("ApproximateAgeOfOldestMessage", "ses-email-input-test")},
        "eventbridge-pipes-failures": {
            (f"Execution{kind}", "ses-email-router-test")
            for kind in ("Failed", "PartiallyFailed", "Timeout", "Throttled")
        },
        "ses-mail-high-email-volume": {("StartsStarted", "starter")},
        "ses-mail-executions-failed": {("Swept", "sweeper")},
        "ses-mail-starts-failed": {("StartsFailed", "starter")},
        "ses-mail-unrouted": {("Unrouted", "router")},
        "ses-mail-bounces-suppressed": {("BouncesSuppressed", "bouncer")},
        "ses-mail-gmail-token-invalid": {("GmailTokenValid", "token-monitor")},
        "ses-mail-loops": {("Loops", "router")},
        "ses-mail-publish-expired": {("PublishExpired", "ses-mail-test")},
        "ses-mail-delivery-delayed": {("DeliveryDelay", "gmail-forwarder")},
    }


def test_volume_is_a_parameter() -> None:
    alarm = monitoring(HighVolumePerHour=7).alarms["ses-mail-high-email-volume-test"]
    assert int(alarm["Threshold"]) == 7


def test_each_choice_about_missing_data_says_why() -> None:
    text = (ROOT / "monitoring.yaml").read_text()
    choices = re.findall(r"TreatMissingData: \w+(.*)", text)
    assert len(choices) == len(ALARMS)
    assert [choice for choice in choices if not choice.startswith(" # ")] == []


def headings(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.skipif(not (ROOT / RUNBOOK).is_file(), reason="the runbook is not there yet")
def test_every_alarm_leads_into_the_runbook() -> None:
    missing = {alarm.anchor for alarm in ALARMS.values()} - headings((ROOT / RUNBOOK).read_text())
    assert missing == set()


def test_runbook_url() -> None:
    alarms = monitoring(RunbookUrl="https://wiki.example/ops").alarms.values()
    assert all(
        re.search(r" https://wiki\.example/ops#[\w-]+$", a["AlarmDescription"]) for a in alarms
    )


def test_only_alarms_of_this_account_publish() -> None:
    (statement,) = NESTED.properties("AlarmTopicPolicy")["PolicyDocument"]["Statement"]
    assert statement == {
        "Sid": "OurAlarmsPublish",
        "Effect": "Allow",
        "Principal": {"Service": "cloudwatch.amazonaws.com"},
        "Action": "sns:Publish",
        "Resource": NESTED.arn("AlarmTopic"),
        "Condition": {
            "StringEquals": {"aws:SourceAccount": ACCOUNT},
            "ArnLike": {"aws:SourceArn": f"{ALARM_ARN}*"},
        },
    }
    assert NESTED.properties("AlarmTopicPolicy")["Topics"] == [NESTED.arn("AlarmTopic")]
    # CloudWatch cannot publish under alias/aws/sns.
    assert NESTED.properties("AlarmTopic") == {"TopicName": "ses-mail-alarms-test"}


@pytest.mark.parametrize("address", ["", "ops@example.com"])
def test_email_is_optional(address: str) -> None:
    nested = monitoring(AlarmEmail=address)
    assert nested.resources["AlarmSubscription"]["Condition"] == "MailAlarms"
    assert nested.resolve(nested.template["Conditions"]["MailAlarms"]) is bool(address)
    assert nested.properties("AlarmSubscription") == {
        "TopicArn": nested.arn("AlarmTopic"),
        "Protocol": "email",
        "Endpoint": address,
    }


# -- dashboard -------------------------------------------------------------------------------------


def test_key_widgets_come_first() -> None:
    by_place = sorted(NESTED.widgets, key=lambda widget: (widget["y"], widget["x"]))
    assert by_place == NESTED.widgets
    assert [w["properties"]["title"] for w in by_place[:6]] == KEY_WIDGETS
    (dashboard,) = NESTED.of_type("AWS::CloudWatch::Dashboard").values()
    assert dashboard["DashboardName"] == "ses-mail-dashboard-test"


def test_widgets_do_not_overlap() -> None:
    cells = Counter(
        (x, y)
        for w in NESTED.widgets
        for x in range(w["x"], w["x"] + w["width"])
        for y in range(w["y"], w["y"] + w["height"])
    )
    assert max(cells.values()) == 1
    assert all(x < 24 for x, _ in cells)


def test_widgets_draw_what_they_hide() -> None:
    for widget in NESTED.widgets:
        rows = [row for row in widget["properties"].get("metrics", []) if row]
        hidden = {o["id"] for row in rows if isinstance(o := row[-1], dict) and "id" in o}
        drawn = " ".join(row[0]["expression"] for row in rows if isinstance(row[0], dict))
        assert set(re.findall(r"\b[a-z]\d\b", drawn)) == hidden, widget["properties"]["title"]


def test_dashboard_shows_every_alarm_and_every_function() -> None:
    (widget,) = (w for w in NESTED.widgets if w["type"] == "alarm")
    assert sorted(widget["properties"]["alarms"]) == sorted(
        f"{ALARM_ARN}{name}" for name in NESTED.alarms
    )
    functions = {f"ses-mail-{module.replace('_', '-')}-test" for module in FUNCTIONS.values()}
    for title in ("Lambda Function Errors", "Lambda Duration"):
        assert functions <= {value for _, value in reads(title)}


# -- all that is read exists -----------------------------------------------------------------------


@functools.cache
def names_in_template() -> dict[str, set[str]]:
    """What a dimension may say."""
    outer = stack()
    of_type: dict[str, set[str]] = {}
    for logical_id, resource in outer.resources.items():
        of_type.setdefault(resource["Type"], set()).add(outer.name(logical_id))
    return {
        "FunctionName": of_type["AWS::Serverless::Function"],
        "QueueName": of_type["AWS::SQS::Queue"],
        "PipeName": of_type["AWS::Pipes::Pipe"],
        "StateMachineArn": {outer.arn("ProcessEmailStateMachine")},
        "RuleName": {outer.properties("ReceiptRule")["Rule"]["Name"]},
    }


def unknown(metric: Metric) -> str | None:
    """What is wrong with it, if anything is. What the functions count themselves, a run shows:
    tests/workflow/test_observability.py."""
    if metric.namespace == "SESMail/test":
        is_known = metric.dimension == "service" and metric.value in SERVICES
        return None if is_known else f"{metric}: nobody counts it"
    published = AWS_METRICS.get(metric.namespace)
    if not published or metric.name not in published.names:
        return f"{metric}: no metric of AWS"
    is_ours = metric.value in names_in_template().get(metric.dimension, set())
    return None if metric.dimension == published.dimension and is_ours else f"{metric}: of nothing"


def test_every_metric_is_published_by_something() -> None:
    assert [problem for metric in NESTED.metrics if (problem := unknown(metric))] == []
    assert {m.namespace for m in NESTED.metrics} == {*AWS_METRICS, "SESMail/test"}


@pytest.mark.parametrize(
    "changed",
    [
        {"namespace": "AWS/Lambdas"},
        {"namespace": "AWS/SQS"},
        {"namespace": "SESMail/prod"},
        {"name": "Error"},
        {"dimension": "Function"},
        {"dimension": "QueueName"},
        {"value": "ses-mail-router-prod"},
        {"value": "router"},
    ],
)
def test_a_metric_that_nobody_publishes_is_missed(changed: dict[str, str]) -> None:
    good = Metric("AWS/Lambda", "Errors", "FunctionName", "ses-mail-router-test", "here")
    assert unknown(good) is None
    assert unknown(good._replace(**changed))


def test_saved_queries_have_these_names() -> None:
    names = [q["Name"] for q in NESTED.of_type("AWS::Logs::QueryDefinition").values()]
    assert names == [f"ses-mail/test/{name}" for name in QUERIES]


@functools.cache
def log_groups() -> dict[str, str]:
    """Logical ids by name."""
    outer = stack()
    return {
        outer.name(logical_id): logical_id
        for logical_id, resource in outer.resources.items()
        if resource["Type"] == "AWS::Logs::LogGroup"
    }


def test_queries_ask_log_groups_that_are_there_first() -> None:
    asked = {group for query in NESTED.queries for group in query.log_groups}
    assert asked - set(log_groups()) == set()
    depends = set(stack().resources["Monitoring"]["DependsOn"])
    assert depends == {log_groups()[group] for group in asked}


@pytest.mark.parametrize(
    ("name", "but"),
    [
        # The token monitor knows tokens, no emails.
        ("email-end-to-end-trace", {"token-monitor"}),
        ("dlq-message-investigation", {"token-monitor"}),
        ("performance-analysis", set()),
    ],
)
def test_queries_over_everything_ask_every_function(name: str, but: set[str]) -> None:
    (query,) = (q for q in NESTED.queries if q.name.endswith(name))
    asked = {group for group in query.log_groups if group.startswith("/aws/lambda/")}
    assert asked == {f"/aws/lambda/ses-mail-{service}-test" for service in set(SERVICES) - but}


def test_trace_has_a_place_for_the_message_id() -> None:
    (query,) = (q for q in NESTED.queries if q.name.endswith("email-end-to-end-trace"))
    assert query.text.count('"MESSAGE_ID"') == 2


def test_starts_are_said_to_count_duplicates_of_what_runs() -> None:
    """StartExecution answers them alike, so nobody can tell them apart."""
    text = (ROOT / "monitoring.yaml").read_text()
    assert "duplicate of an\n        email that is still under way counts too" in text
