"""What monitoring.yaml watches and asks for, read off the file, for the tests that compare it with
the template, the code and a real run."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from samtranslator.yaml_helper import yaml_parse

from tests.template.contract import ACCOUNT, REGION, Project

# Metrics that AWS publishes by itself: namespace → (dimension, names). Looked up in its documents,
# but for AWS/States and AWS/SES, whose names nobody has confirmed (docs/decisions.md).
AWS_METRICS = {
    "AWS/Lambda": (
        "FunctionName",
        {"Invocations", "Errors", "Throttles", "Duration", "ConcurrentExecutions"},
    ),
    "AWS/SQS": (
        "QueueName",
        {
            "ApproximateNumberOfMessagesVisible",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateAgeOfOldestMessage",
        },
    ),
    "AWS/EventBridge/Pipes": (
        "PipeName",
        {
            "Invocations",
            "ExecutionFailed",
            "ExecutionPartiallyFailed",
            "ExecutionTimeout",
            "ExecutionThrottled",
        },
    ),
    "AWS/States": (
        "StateMachineArn",
        {
            "ExecutionsStarted",
            "ExecutionsSucceeded",
            "ExecutionsFailed",
            "ExecutionsTimedOut",
            "ExecutionsAborted",
        },
    ),
    "AWS/SES": ("RuleName", {"PublishExpired"}),
}
# Fields that Logs Insights finds in Lambda's own lines, and in those of Step Functions.
LAMBDA_FIELDS = {"@type", "@duration", "@initDuration", "@maxMemoryUsed", "@memorySize"}
STATES_FIELDS = {"type", "execution_arn"}
INSIGHTS_FIELDS = {"@timestamp", "@message", "@log"}
# Every line of Powertools' logger has these.
POWERTOOLS_FIELDS = {"level", "message", "service", "timestamp", "location"}

_KEYWORDS = {
    *("fields", "filter", "stats", "sort", "limit", "by", "as", "and", "or", "in", "like"),
    *("desc", "asc", "count", "avg", "min", "max", "pct", "latest", "coalesce"),
}
_FUNCTION_NAMES = re.compile(r"add_metric|count")


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


def published(root: Path, services: dict[str, str]) -> dict[str, set[str]]:
    """Metrics that the code counts, by service; `services` maps a service to its handler's module.

    A handler's own, and those that it counts through a function of `observe`.
    """
    shared = ast.parse((root / "functions/ses_mail/observe.py").read_text())
    by_function = {
        node.name: set(_counted(node)) for node in shared.body if isinstance(node, ast.FunctionDef)
    }
    found = {}
    for service, module in services.items():
        tree = ast.parse((root / f"functions/{module}.py").read_text())
        called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        found[service] = set(_counted(tree)).union(
            *(names for name, names in by_function.items() if f"observe.{name}" in called)
        )
    return found


def _counted(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            if _FUNCTION_NAMES.fullmatch(ast.unparse(node.func).rpartition(".")[2]):
                yield from _names(node.args[0])
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_METRICS":
            yield from _names(node.value)


def _names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.JoinedStr):
            # f"Starts{…}": all that start.py may say.
            (prefix,) = (p.value for p in inner.values if isinstance(p, ast.Constant))
            for result in ("started", "duplicate", "ignored", "parked"):
                yield f"{prefix}{result.capitalize()}"
        elif isinstance(inner, ast.Constant) and str(inner.value)[:1].isupper():
            yield str(inner.value)


def logged(root: Path) -> tuple[set[str], set[str]]:
    """(fields, messages) of all log lines that the code writes."""
    fields, messages = set(POWERTOOLS_FIELDS), set()
    for path in sorted((root / "functions").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not ast.unparse(node.func.value).endswith("logger"):
                continue
            fields |= {keyword.arg for keyword in node.keywords if keyword.arg}
            messages |= {
                str(a.value)
                for a in node.args[:1]
                if isinstance(a, ast.Constant) and node.func.attr != "append_keys"
            }
    return fields, messages


ALARM_ARN = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:"
