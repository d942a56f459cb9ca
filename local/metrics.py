"""CloudWatch, as far as moto lacks it: metrics out of the functions' logs (EMF) and of the services
that moto does not measure, the evaluation of alarms on them, and saved queries.

Time is real here, as the time of log lines is: whoever reads metrics asks with the wall clock.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from moto.cloudwatch.models import Alarm, CloudWatchBackend, MetricDatum, cloudwatch_backends
from moto.cloudwatch.responses import CloudWatchResponse
from moto.logs.responses import LogsResponse
from moto.sqs.models import sqs_backends

from local.iam import ACCOUNT, REGION
from local.logs import new_lines
from local.patches import Patches

# After so many receives a message counts no more for ApproximateAgeOfOldestMessage.
RECEIVES_THAT_AGE = 3
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
}
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "Sum": sum,
    "Maximum": max,
    "Minimum": min,
    "p95": lambda values: sorted(values)[math.ceil(len(values) * 0.95) - 1],
}
ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
}
OURS = "SESMail/"
# (namespace, name, dimensions) → (when, value) of each datum, UTC.
Series = dict[tuple[str, str, frozenset[tuple[str, str]]], list[tuple[datetime, float]]]
STATES = {
    "RUNNING": "ExecutionsStarted",
    "SUCCEEDED": "ExecutionsSucceeded",
    "FAILED": "ExecutionsFailed",
    "TIMED_OUT": "ExecutionsTimedOut",
    "ABORTED": "ExecutionsAborted",
}


@dataclass(frozen=True)
class Datum:
    """One value of one metric."""

    namespace: str
    name: str
    dimensions: Mapping[str, str]
    value: float
    unit: str = "Count"
    at: datetime | None = None  # None = when it is collected


@dataclass(frozen=True)
class Reading:
    """What AWS leaves open about an alarm, and how late its metrics are.

    late: what is younger than this has not come yet. extra: so many periods more than the alarm's N
    are looked back over for data points that are there: AWS says "a higher number", and 2 in its
    example. zeros: a sum of nothing but missing values is 0; else it is missing too.
    CloudWatch User Guide, "Configuring how CloudWatch alarms treat missing data" and "Using metric
    math".
    """

    late: timedelta = timedelta()
    extra: int = 2
    zeros: bool = False


class Metrics:
    """Collects whenever somebody reads; thread-safe.

    `factor` is real seconds per second of the cloud, in whose seconds ages are told.
    """

    def __init__(
        self,
        *,
        functions: Callable[[], Any],  # the Runtime
        pipe: Callable[[], Any],
        executions: Callable[[], Iterable[Any]],
        factor: float,
    ) -> None:
        self._functions = functions
        self._pipe = pipe
        self._executions = executions
        self._factor = factor
        self._lock = threading.Lock()
        self._data: list[MetricDatum] = []
        self._read: dict[Path, int] = {}  # how much of each log
        self._invocations = 0
        self._pipe_executions = 0
        self._counted: set[tuple[str, str]] = set()  # (execution ARN, metric)
        self._queries: dict[str, dict[str, Any]] = {}

    def install(self, patches: Patches) -> None:
        """Let moto's CloudWatch show what is collected here, and its logs keep saved queries."""
        patches.replace(
            CloudWatchBackend, "aws_metric_data", property(lambda _backend: self.collect())
        )
        answer = CloudWatchResponse.describe_alarms

        def describe_alarms(response: Any) -> Any:
            self.alarms()
            return answer(response)

        patches.replace(CloudWatchResponse, "describe_alarms", describe_alarms)
        # moto calls them on its response; a bound method would not get that.
        patches.add(LogsResponse, "put_query_definition", lambda r: self._put_query(r))
        patches.add(LogsResponse, "describe_query_definitions", lambda r: self._describe_queries(r))

    # -- metrics -----------------------------------------------------------------------------------

    def collect(self, at: datetime | None = None) -> list[MetricDatum]:
        """Everything collected so far; what is new since the last time gets its own time, or
        `at`."""
        with self._lock:
            now = datetime.now(UTC)
            for datum in self._new():
                self._data.append(
                    MetricDatum(
                        datum.namespace,
                        datum.name,
                        datum.value,
                        [{"Name": n, "Value": v} for n, v in datum.dimensions.items()],
                        _naive(at or datum.at or now),
                        datum.unit,
                    )
                )
            return list(self._data)

    def forget(self) -> list[MetricDatum]:
        """Start with nothing, and return what there was, AWS's own metrics and all others."""
        backend = cloudwatch_backends[ACCOUNT][REGION]
        known: list[MetricDatum] = backend.get_all_metrics()
        with self._lock:
            self._data.clear()
            backend.metric_data.clear()
        return known

    def _new(self) -> Iterable[Datum]:
        yield from self._embedded()
        yield from self._lambda()
        yield from self._pipes()
        yield from self._states()
        yield from self._sqs()

    def _embedded(self) -> Iterable[Datum]:
        """The functions' own metrics, from the lines that their logs got since the last time."""
        runtime = self._functions()
        for path in (path for name in runtime.functions for path in runtime.log_files(name)):
            for line in new_lines(path, self._read):
                if b'"_aws"' in line:
                    yield from embedded(json.loads(line))

    def _lambda(self) -> Iterable[Datum]:
        invocations = self._functions().invocations
        new = invocations[self._invocations :]
        self._invocations += len(new)
        for done in new:
            at = datetime.fromtimestamp(done.ended, UTC)
            same_time = sum(
                other.function == done.function
                and other.ended - other.seconds <= done.ended <= other.ended
                for other in new
            )
            for name, value, unit in (
                ("Invocations", 1, "Count"),
                ("Errors", done.failed is not None, "Count"),
                ("Throttles", 0, "Count"),
                ("Duration", done.seconds * 1000, "Milliseconds"),
                ("ConcurrentExecutions", same_time, "Count"),
            ):
                yield Datum("AWS/Lambda", name, {"FunctionName": done.function}, value, unit, at)

    def _pipes(self) -> Iterable[Datum]:
        pipe = self._pipe()
        new = pipe.executions[self._pipe_executions :]
        self._pipe_executions += len(new)
        for failure in new:
            for name in ("ExecutionFailed", "ExecutionPartiallyFailed"):
                yield Datum("AWS/EventBridge/Pipes", name, {"PipeName": pipe.name}, name == failure)
            for name, value in (
                ("Invocations", 1),
                ("ExecutionTimeout", 0),
                ("ExecutionThrottled", 0),
            ):
                yield Datum("AWS/EventBridge/Pipes", name, {"PipeName": pipe.name}, value)

    def _states(self) -> Iterable[Datum]:
        for execution in self._executions():
            for name in (STATES["RUNNING"], STATES[str(execution.status)]):
                if (execution.exec_arn, name) not in self._counted:
                    self._counted.add((execution.exec_arn, name))
                    machine = {"StateMachineArn": execution.state_machine.arn}
                    yield Datum("AWS/States", name, machine, 1)

    def _sqs(self) -> Iterable[Datum]:
        now = datetime.now(UTC).timestamp()
        for queue in sqs_backends[ACCOUNT][REGION].queues.values():
            messages = list(queue._messages)
            sent = [
                message.sent_timestamp / 1000
                for message in messages
                if message.approximate_receive_count < RECEIVES_THAT_AGE
            ]
            visible = sum(message.visible for message in messages)
            age = (now - min(sent, default=now)) / self._factor
            for name, value, unit in (
                ("ApproximateNumberOfMessagesVisible", visible, "Count"),
                ("ApproximateNumberOfMessagesNotVisible", len(messages) - visible, "Count"),
                ("ApproximateAgeOfOldestMessage", age, "Seconds"),
            ):
                yield Datum("AWS/SQS", name, {"QueueName": queue.name}, value, unit)

    def age(self, span: timedelta) -> None:
        """Everything collected so far, and what was put through the API, is older by that much."""
        self.collect()
        with self._lock:
            for datum in [*self._data, *cloudwatch_backends[ACCOUNT][REGION].metric_data]:
                datum.timestamp -= span

    # -- alarms ------------------------------------------------------------------------------------

    def alarms(self, at: datetime | None = None, reading: Reading = Reading()) -> set[str]:
        """Names of the alarms in ALARM at that time, now by default; moto is told the states."""
        end = _naive(at or datetime.now(UTC)) + timedelta(seconds=1)
        series = self.series()
        raised = set()
        for alarm in list(cloudwatch_backends[ACCOUNT][REGION].alarms.values()):
            values = data_points(series, alarm, end, reading)
            state = evaluate(alarm, values)
            if state == "ALARM":
                raised.add(alarm.name)
            if state != alarm.state_value:
                alarm.update_state(f"Datapoints: {values}", "{}", state)
        return raised

    def series(self) -> Series:
        """Everything measured so far, what was put through the API included, by metric."""
        backend = cloudwatch_backends[ACCOUNT][REGION]
        series: Series = {}
        for datum in [*self.collect(), *backend.metric_data]:
            dimensions = frozenset((d.name, d.value) for d in datum.dimensions)
            points = series.setdefault((datum.namespace, datum.name, dimensions), [])
            points.append((_naive(datum.timestamp), float(datum.value)))
        return series

    def counted(self, since: datetime | None = None) -> dict[str, float]:
        """How often each thing was counted by the functions: the sum of every metric of theirs with
        unit Count, by the metric's name (`{"Forwarded": 12, "StartsStarted": 12}`), of log lines
        written at `since` or later.

        Equal to the account of a run: nothing is sampled, and a line is read once.
        """
        counted: Counter[str] = Counter()
        for datum in self.collect():
            is_ours = datum.namespace.startswith(OURS) and datum.unit == "Count"
            if is_ours and (since is None or _naive(datum.timestamp) >= _naive(since)):
                counted[datum.name] += datum.value
        return dict(counted)

    # -- saved queries -----------------------------------------------------------------------------

    def _put_query(self, response: Any) -> str:
        identifier = str(uuid.uuid4())
        self._queries[identifier] = {
            "queryDefinitionId": identifier,
            "name": response._get_param("name"),
            "queryString": response._get_param("queryString"),
            "logGroupNames": response._get_param("logGroupNames", []),
            "lastModified": int(datetime.now(UTC).timestamp() * 1000),
        }
        return json.dumps({"queryDefinitionId": identifier})

    def _describe_queries(self, response: Any) -> str:
        prefix = response._get_param("queryDefinitionNamePrefix", "")
        found = [query for query in self._queries.values() if query["name"].startswith(prefix)]
        return json.dumps({"queryDefinitions": found})


def _naive(at: datetime) -> datetime:
    """As moto compares times: UTC without saying so."""
    return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at


def embedded(line: Mapping[str, Any]) -> Iterable[Datum]:
    """The metrics of a log line in CloudWatch's embedded metric format."""
    at = datetime.fromtimestamp(line["_aws"]["Timestamp"] / 1000, UTC)
    for directive in line["_aws"]["CloudWatchMetrics"]:
        for names in directive["Dimensions"]:
            dimensions = {name: str(line[name]) for name in names}
            for metric in directive["Metrics"]:
                values = line[metric["Name"]]
                for value in values if isinstance(values, list) else [values]:
                    yield Datum(
                        directive["Namespace"],
                        metric["Name"],
                        dimensions,
                        value,
                        metric.get("Unit", "None"),
                        at,
                    )


def data_points(
    series: Series, alarm: Alarm, end: datetime, reading: Reading = Reading()
) -> list[float | None]:
    """What the alarm finds in its evaluation range, oldest first; None where there is nothing.

    Its periods slide, as they do on AWS by default: the newest one ends at `end`.
    """
    count = int(alarm.evaluation_periods) + reading.extra
    if not alarm.metric_data_queries:
        return _points(series, alarm, int(alarm.period), alarm.statistic, count, end, reading)
    parts: dict[str, list[float | None]] = {}
    expression = ""
    for query in alarm.metric_data_queries:
        if stat := query.metric_stat:
            parts[query.id] = _points(
                series, stat.metric, int(stat.period), stat.stat, count, end, reading
            )
        else:
            expression = str(query.expression)
    return [
        calculate(expression, {key: values[index] for key, values in parts.items()}, reading.zeros)
        for index in range(count)
    ]


def _points(
    series: Series,
    metric: Any,
    period: int,
    statistic: str,
    count: int,
    end: datetime,
    reading: Reading,
) -> list[float | None]:
    dimensions = frozenset((d.name, d.value) for d in metric.dimensions)
    points = series.get((metric.namespace, metric.metric_name, dimensions), [])
    there = [(at, value) for at, value in points if at < end - reading.late]
    return statistics(there, period, statistic, count, end)


def statistics(
    points: Iterable[tuple[datetime, float]],
    period: int,
    statistic: str,
    count: int,
    end: datetime,
) -> list[float | None]:
    """The statistic of each of `count` periods of so many seconds, oldest first; None if empty."""
    periods: list[list[float]] = [[] for _ in range(count)]
    for at, value in points:
        index = count - math.ceil((end - at).total_seconds() / period)
        if at < end and index >= 0:
            periods[index].append(value)
    return [STATISTICS[statistic](values) if values else None for values in periods]


def calculate(
    expression: str, values: Mapping[str, float | None], zeros: bool = False
) -> float | None:
    """Metric math of one period, as far as an alarm or a widget has any: sums, differences, and
    FILL with a number. A missing value counts as 0 beside one that is there."""

    def value(node: ast.expr) -> float | None:
        match node:
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                a, b = value(left), value(right)
                if a is None and b is None:
                    return 0 if zeros else None
                return ARITHMETIC[type(op)](a or 0, b or 0)
            case ast.Call(ast.Name("FILL"), [filled, ast.Constant(int(filling))], []):
                there = value(filled)
                return filling if there is None else there
        raise NotImplementedError(f"metric math {expression!r}: local/metrics.py")

    return value(ast.parse(expression, mode="eval").body)


def evaluate(alarm: Alarm, values: Sequence[float | None]) -> str:
    """ALARM or OK, from the data points of the evaluation range.

    Of those that are there the newest N count; what lacks of N is filled as the alarm treats
    missing data (CloudWatch User Guide, "Configuring how CloudWatch alarms treat missing data").
    """
    periods = int(alarm.evaluation_periods)
    there = [value for value in values if value is not None][-periods:]
    breaches = COMPARISONS[alarm.comparison_operator]
    breaching = sum(breaches(value, float(alarm.threshold)) for value in there)
    if {"breaching": True, "notBreaching": False}[alarm.treat_missing_data or "missing"]:
        breaching += periods - len(there)
    return "ALARM" if breaching >= int(alarm.datapoints_to_alarm or periods) else "OK"
