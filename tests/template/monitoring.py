"""What monitoring.yaml watches and asks for, read off the file, for the tests that compare it with
the template, the code and a real run."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from samtranslator.yaml_helper import yaml_parse

from local.metrics import Series, calculate, statistics
from tests.template.contract import ACCOUNT, REGION, Project


class Published(NamedTuple):
    """Metrics that AWS publishes by itself, and the page that says so."""

    dimension: str
    names: set[str]
    source: str


AWS_METRICS = {
    "AWS/Lambda": Published(
        "FunctionName",
        {"Invocations", "Errors", "Throttles", "Duration", "ConcurrentExecutions"},
        "Lambda Developer Guide, Types of metrics for Lambda functions",
    ),
    "AWS/SQS": Published(
        "QueueName",
        {
            "ApproximateNumberOfMessagesVisible",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateAgeOfOldestMessage",
        },
        "SQS Developer Guide, Available CloudWatch metrics for Amazon SQS",
    ),
    "AWS/EventBridge/Pipes": Published(
        "PipeName",
        {
            "Invocations",
            "ExecutionFailed",
            "ExecutionPartiallyFailed",
            "ExecutionTimeout",
            "ExecutionThrottled",
        },
        "EventBridge User Guide, Logging and monitoring Amazon EventBridge Pipes",
    ),
    "AWS/States": Published(
        "StateMachineArn",
        {
            "ExecutionsStarted",
            "ExecutionsSucceeded",
            "ExecutionsFailed",
            "ExecutionsTimedOut",
            "ExecutionsAborted",
        },
        "CloudWatch User Guide, Application Insights, AWS Step Functions (names); AWS CDK, "
        "StatesMetrics (namespace and dimension)",
    ),
    # The dimension is not confirmed: docs/decisions.md.
    "AWS/SES": Published(
        "RuleName", {"PublishExpired"}, "SES Developer Guide, metrics of email receiving (name)"
    ),
}
# Fields that Logs Insights finds in Lambda's own lines, and in those of Step Functions.
LAMBDA_FIELDS = {"@type", "@duration", "@initDuration", "@maxMemoryUsed", "@memorySize"}
STATES_FIELDS = {"type", "execution_arn"}
INSIGHTS_FIELDS = {"@timestamp", "@message", "@log"}

_KEYWORDS = {
    *("fields", "filter", "stats", "sort", "limit", "by", "as", "and", "or", "in", "like"),
    *("desc", "asc", "count", "avg", "min", "max", "pct", "latest", "coalesce"),
}


class Metric(NamedTuple):
    """One metric as somebody reads it; `where` names the alarm or widget."""

    namespace: str
    name: str
    dimension: str
    value: str
    where: str


@dataclass(frozen=True)
class Query:
    """A query of Logs Insights: fields that it reads, and texts that it compares with."""

    name: str
    log_groups: tuple[str, ...]
    text: str

    @property
    def fields(self) -> set[str]:
        bare = re.sub(r'"[^"]*"|like\s+/[^/\n]*/', " ", self.text)
        made = set(re.findall(r"\bas\s+(\w+)", bare))
        words = set(re.findall(r"(?<![\w.])@?[A-Za-z_]\w*", bare))
        return words - made - _KEYWORDS

    @property
    def texts(self) -> set[str]:
        """Of messages, results, levels, actions."""
        return set(re.findall(r'"([^"]*)"', self.text))


class Monitoring(Project):
    """monitoring.yaml with its functions resolved."""

    @cached_property
    def template(self) -> dict[str, Any]:
        return dict(yaml_parse((self.root / "monitoring.yaml").read_text()))

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Properties by logical id."""
        return {
            logical_id: self.properties(logical_id)
            for logical_id, resource in self.resources.items()
            if resource["Type"] == kind
        }

    @property
    def alarms(self) -> dict[str, dict[str, Any]]:
        """Properties by alarm name."""
        return {a["AlarmName"]: a for a in self.of_type("AWS::CloudWatch::Alarm").values()}

    @property
    def widgets(self) -> list[dict[str, Any]]:
        (dashboard,) = self.of_type("AWS::CloudWatch::Dashboard").values()
        return list(json.loads(dashboard["DashboardBody"])["widgets"])

    @property
    def queries(self) -> list[Query]:
        """The saved ones, then those of the dashboard."""
        saved = [
            Query(q["Name"], tuple(q["LogGroupNames"]), q["QueryString"])
            for q in self.of_type("AWS::Logs::QueryDefinition").values()
        ]
        for widget in self.widgets:
            if widget["type"] == "log":
                source, _, text = widget["properties"]["query"].partition(" | ")
                groups = tuple(re.findall(r"'([^']+)'", source))
                saved.append(Query(widget["properties"]["title"], groups, text))
        return saved

    @property
    def metrics(self) -> list[Metric]:
        """Every metric that an alarm or a widget reads."""
        return [*self._alarm_metrics(), *self._widget_metrics()]

    def _alarm_metrics(self) -> Iterator[Metric]:
        for name, alarm in self.alarms.items():
            parts = [q["MetricStat"]["Metric"] for q in alarm.get("Metrics", []) if "Id" in q
                     and "MetricStat" in q] or [alarm]  # fmt: skip
            for part in parts:
                (dimension,) = part["Dimensions"]
                yield Metric(part["Namespace"], part["MetricName"], *dimension.values(), where=name)

    def _widget_metrics(self) -> Iterator[Metric]:
        for widget in self.widgets:
            for row in widget["properties"].get("metrics", []):
                if isinstance(row[0], str):
                    yield Metric(*row[:4], where=widget["properties"]["title"])


def drawn(widget: dict[str, Any], series: Series, end: datetime) -> dict[str, float | None]:
    """What each line of a widget shows of the day before `end`, by label.

    Dashboard Body Structure and Syntax: a row's own stat wins over the widget's, hidden metrics are
    there for expressions, which name them by id.
    """
    properties = widget["properties"]
    values: dict[str, float | None] = {}
    shown: dict[str, float | None] = {}
    for row in properties["metrics"]:
        options = row[-1]
        assert set(options) <= {"id", "visible", "label", "stat", "yAxis", "expression"}
        if "expression" in options:
            value = calculate(options["expression"], values)
        else:
            namespace, name, dimension, of = row[:-1]
            points = series.get((namespace, name, frozenset({(dimension, of)})), [])
            statistic = options.get("stat", properties["stat"])
            (value,) = statistics(points, 24 * 3600, statistic, 1, end)
        if "id" in options:
            values[options["id"]] = value
        if options.get("visible", True):
            assert options["label"] not in shown
            shown[options["label"]] = value
    return shown


ALARM_ARN = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:"
