"""CloudWatch, as far as moto lacks it: metrics out of the functions' logs (EMF) and of the services
that moto does not measure, the evaluation of alarms on them, and saved queries.

Time is real here, as the time of log lines is: whoever reads metrics asks with the wall clock.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
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
FILLED = re.compile(r"FILL\((\w+), ?(\d+)\)")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
}
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

    # -- alarms ------------------------------------------------------------------------------------

    def alarms(self, at: datetime | None = None) -> set[str]:
        """Names of the alarms in ALARM at that time, now by default; moto is told the states."""
        backend = cloudwatch_backends[ACCOUNT][REGION]
        end = _naive(at or datetime.now(UTC)) + timedelta(seconds=1)
        raised = set()
        for alarm in list(backend.alarms.values()):
            values = series(backend, alarm, end)
            breaching = [breaches(alarm, value) for value in values]
            needed = alarm.datapoints_to_alarm or alarm.evaluation_periods
            state = "ALARM" if sum(breaching) >= int(needed) else "OK"
            if state == "ALARM":
                raised.add(alarm.name)
            if state != alarm.state_value:
                alarm.update_state(f"Datapoints: {values}", "{}", state)
        return raised

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
    return at.astimezone(UTC).replace(tzinfo=None)


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


def series(backend: CloudWatchBackend, alarm: Alarm, end: datetime) -> list[float | None]:
    """The values that the alarm looks at, oldest first; None where there are no data."""
    count = int(alarm.evaluation_periods)
    if not alarm.metric_data_queries:
        return _statistic(backend, alarm, int(alarm.period), alarm.statistic, count, end)
    parts: dict[str, list[float | None]] = {}
    expression = ""
    for query in alarm.metric_data_queries:
        stat = query.metric_stat
        if stat:
            parts[query.id] = _statistic(
                backend, stat.metric, int(stat.period), stat.stat, count, end
            )
        else:
            expression = str(query.expression)
    return _sum(expression, parts, count)


def _statistic(
    backend: CloudWatchBackend, metric: Any, period: int, statistic: str, count: int, end: datetime
) -> list[float | None]:
    start = (end - timedelta(seconds=count * period)).replace(microsecond=0)
    stat = {
        "Metric": {
            "Namespace": metric.namespace,
            "MetricName": metric.metric_name,
            "Dimensions": [{"Name": d.name, "Value": d.value} for d in metric.dimensions],
        },
        "Period": period,
        "Stat": statistic,
    }
    (result,) = backend.get_metric_data([{"Id": "m", "MetricStat": stat}], start, end)
    values: list[float | None] = [None] * count
    for at, value in zip(result["timestamps"], result["values"], strict=True):
        values[int((at - start).total_seconds()) // period] = float(value)
    return values


def _sum(
    expression: str, parts: Mapping[str, Sequence[float | None]], count: int
) -> list[float | None]:
    """Metric math of the only form that the template uses: FILL(a, 0) + FILL(b, 0) + …"""
    terms = [FILLED.fullmatch(term.strip()) for term in expression.split("+")]
    if None in terms:
        raise NotImplementedError(f"metric math {expression!r}: local/metrics.py")
    summed: list[float | None] = []
    for index in range(count):
        found = [(parts[term[1]][index], float(term[2])) for term in terms if term]
        missing = all(value is None for value, _ in found)
        summed.append(
            None if missing else sum(fill if value is None else value for value, fill in found)
        )
    return summed


def breaches(alarm: Alarm, value: float | None) -> bool:
    """Whether one datapoint counts towards the alarm."""
    if value is None:
        return {"breaching": True, "notBreaching": False}[alarm.treat_missing_data or ""]
    return COMPARISONS[alarm.comparison_operator](value, float(alarm.threshold))
