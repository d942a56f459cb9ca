"""Each alarm of monitoring.yaml, evaluated over metrics that come late, not at all, or for a while.

What AWS leaves open (`Reading`) is tried both ways.
"""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from moto import mock_aws
from moto.cloudwatch.models import cloudwatch_backends

from local.iam import ACCOUNT, REGION
from local.metrics import Reading, Series, data_points, evaluate
from tests.template.test_monitoring import ALARMS, NESTED, ROOT

NOON = datetime(2026, 11, 25, 12)  # noqa: DTZ001  as moto keeps times
MINUTE, HOUR = 60, 3600
SQS_LATE = 15 * MINUTE  # "a delay of up to 15 minutes", SQS Developer Guide
READINGS = [(extra, zeros) for extra in (0, 2, 20) for zeros in (False, True)]
TOKEN, DLQ_AGE = "ses-mail-gmail-token-invalid", "ses-mail-dlq-age"
DELAYED = "ses-mail-delivery-delayed"
DLQS = [name for name in ALARMS if name.endswith("-dlq-messages")]


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Any]]:
    """moto's alarms by name, made through the API that CloudFormation calls."""
    with mock_aws():
        import boto3

        client = boto3.client("cloudwatch", region_name=REGION)
        for name, properties in NESTED.alarms.items():
            client.put_metric_alarm(**{**properties, "Threshold": float(properties["Threshold"])})
            old = {**properties, "AlarmName": f"old-{name}"}
            if "dlq-messages" in name:
                client.put_metric_alarm(**as_it_was(old))
        alarms = cloudwatch_backends[ACCOUNT][REGION].alarms
        yield {name.removesuffix("-test"): alarm for name, alarm in alarms.items()}


def as_it_was(properties: dict[str, Any]) -> dict[str, Any]:
    """A DLQ's alarm with its sum filled, and only the newest minute looked at."""
    total, *parts = properties["Metrics"]
    filled = " + ".join(f"FILL({part['Id']}, 0)" for part in parts)
    return {
        **properties,
        "Metrics": [{**total, "Expression": filled}, *parts],
        "EvaluationPeriods": 1,
        "DatapointsToAlarm": 1,
    }


def metrics_of(alarm: Any) -> list[Any]:
    return [q.metric_stat.metric for q in alarm.metric_data_queries if q.metric_stat] or [alarm]


def period_of(alarm: Any) -> int:
    periods = {int(q.metric_stat.period) for q in alarm.metric_data_queries if q.metric_stat}
    (period,) = periods or {int(alarm.period)}
    return period


def values_of(alarm: Any) -> tuple[float, float]:
    """(one that is just breaching, one that is just not)."""
    threshold = float(alarm.threshold)
    return {
        "GreaterThanOrEqualToThreshold": (threshold, threshold - 1),
        "GreaterThanThreshold": (threshold + 1, threshold),
        "LessThanThreshold": (threshold - 1, threshold),
    }[alarm.comparison_operator]


def series(alarm: Any, points: dict[int, float], part: int = 0) -> Series:
    """One metric of the alarm with these values, so many seconds before noon."""
    metric = metrics_of(alarm)[part]
    dimensions = frozenset((d.name, d.value) for d in metric.dimensions)
    key = (metric.namespace, metric.metric_name, dimensions)
    return {key: [(NOON - timedelta(seconds=ago), value) for ago, value in points.items()]}


def state(
    alarm: Any, data: Series, reading: tuple[int, bool], *, late: int = 0, ago: int = 0
) -> str:
    """So many seconds before noon, with metrics that are so many seconds late."""
    extra, zeros = reading
    end = NOON - timedelta(seconds=ago)
    values = data_points(data, alarm, end, Reading(timedelta(seconds=late), extra, zeros))
    return evaluate(alarm, values)


def shape(alarm: Any) -> tuple[int, int, int]:
    """(M, N, seconds of a period)."""
    return int(alarm.datapoints_to_alarm), int(alarm.evaluation_periods), period_of(alarm)


# -- metrics that come late ------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", sorted(set(ALARMS) - {TOKEN}))
def test_what_comes_late_still_raises_the_alarm(
    name: str, reading: tuple[int, bool], made: dict[str, Any]
) -> None:
    alarm = made[name]
    needed, periods, period = shape(alarm)
    allowed = periods - needed
    assert allowed * period >= SQS_LATE
    bad, _ = values_of(alarm)
    for part in range(len(metrics_of(alarm))):
        for late in range(allowed + 1):
            # M periods in a row are bad, and the newest of them has just come.
            points = {(late + index) * period + 1: bad for index in range(needed)}
            assert state(alarm, series(alarm, points, part), reading, late=late * period) == "ALARM"


@pytest.mark.parametrize("name", DLQS)
def test_filled_minutes_hid_what_came_late(name: str, made: dict[str, Any]) -> None:
    """How these alarms were once: a minute late was enough to stay OK for ever."""
    old, new = made[f"old-{name}"], made[name]
    points = dict.fromkeys(range(MINUTE, 24 * HOUR, MINUTE), 1.0)
    for late in range(MINUTE, SQS_LATE + 1, MINUTE):
        for reading in READINGS:
            data = series(new, points)
            assert state(old, data, reading, late=late + 1) == "OK"
            assert state(new, data, reading, late=late + 1) == "ALARM"


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", DLQS)
def test_peeking_clears_nothing(name: str, reading: tuple[int, bool], made: dict[str, Any]) -> None:
    """A letter is visible and in flight by turns, for days, and metrics are late."""
    alarm = made[name]
    visible = {ago: float(ago // MINUTE % 2) for ago in range(1, 2 * HOUR, MINUTE)}
    data = series(alarm, visible, 0) | series(alarm, {a: 1 - v for a, v in visible.items()}, 1)
    assert state(alarm, data, reading) == "ALARM"
    # For the whole of a visibility time-out longer than what the alarm looks back.
    in_flight = series(alarm, dict.fromkeys(visible, 0.0), 0)
    in_flight |= series(alarm, dict.fromkeys(visible, 1.0), 1)
    assert state(alarm, in_flight, reading, late=SQS_LATE) == "ALARM"


# -- metrics that are good again -------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 2, 20])
@pytest.mark.parametrize("name", ALARMS)
def test_alarm_is_over_when_the_runbook_says(name: str, extra: int, made: dict[str, Any]) -> None:
    """Of a metric that goes on, M of N is undone by N - M + 1 good periods."""
    alarm = made[name]
    needed, periods, period = shape(alarm)
    bad, good = values_of(alarm)
    over = (periods - needed + 1) * period
    for part in range(len(metrics_of(alarm))):
        points = {over + index * period: bad for index in range(periods + extra)}
        points |= dict.fromkeys(range(period // 2, over, period), good)
        data = series(alarm, points, part)
        assert state(alarm, data, (extra, False)) == "ALARM"
        assert state(alarm, data, (extra, False), ago=-1) == "OK"
    assert over_in_runbook()[name] == over


def over_in_runbook() -> dict[str, int]:
    """Seconds after which the runbook says that an alarm is over, by alarm."""
    units = {"minutes": MINUTE, "hours": HOUR}
    table = {}
    for line in (ROOT / "runbooks/OPERATIONS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and cells[1].endswith("-{env}`"):
            number, unit = cells[3].split()
            table[cells[1].strip("`").removesuffix("-{env}")] = int(number) * units[unit]
    return table


def test_runbook_says_it_of_every_alarm() -> None:
    assert set(over_in_runbook()) == set(ALARMS)


@pytest.mark.parametrize("name", sorted(set(ALARMS) - {TOKEN}))
def test_silence_is_good_news(name: str, made: dict[str, Any]) -> None:
    alarm = made[name]
    assert all(state(alarm, {}, reading) == "OK" for reading in READINGS)
    _, periods, period = shape(alarm)
    bad, _ = values_of(alarm)
    for extra, zeros in READINGS:
        gone = (periods + extra) * period
        points = dict.fromkeys(range(gone + 1, gone + 9 * period, period), bad)
        assert state(alarm, series(alarm, points), (extra, zeros)) == "OK"


# -- metrics that come hourly, or less -------------------------------------------------------------


def hourly(value: float, jitter: int) -> dict[int, float]:
    """A day's checks, one every hour give or take."""
    return {hour * HOUR + (jitter if hour % 2 else 0): value for hour in range(1, 30)}


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("late", [0, MINUTE, 15 * MINUTE])
@pytest.mark.parametrize("jitter", [-MINUTE, 0, MINUTE])
def test_an_hourly_check_that_comes_late_is_not_taken_for_silence(
    jitter: int, late: int, extra: int, made: dict[str, Any]
) -> None:
    data = series(made[TOKEN], hourly(1, jitter))
    for ago in range(HOUR, 13 * HOUR, MINUTE):
        assert state(made[TOKEN], data, (extra, False), late=late, ago=ago) == "OK"


def test_one_hour_would_take_it_for_silence(made: dict[str, Any]) -> None:
    data = series(made[TOKEN], hourly(1, MINUTE))
    made[TOKEN].period = HOUR
    try:
        silent = {
            state(made[TOKEN], data, (0, False), late=MINUTE, ago=ago)
            for ago in range(HOUR, 13 * HOUR, MINUTE)
        }
    finally:
        made[TOKEN].period = 2 * HOUR
    assert silent == {"OK", "ALARM"}


@pytest.mark.parametrize("extra", [0, 2, 20])
def test_a_bad_token_is_told_with_the_first_check(extra: int, made: dict[str, Any]) -> None:
    checks = {**hourly(1, 0), HOUR: 0.0}
    # Another mailbox's token, checked by the same run, is good.
    both = series(made[TOKEN], checks)
    (points,) = both.values()
    points.append((NOON - timedelta(seconds=HOUR), 1.0))
    assert state(made[TOKEN], both, (extra, False), late=0, ago=HOUR) == "OK"
    assert state(made[TOKEN], both, (extra, False), late=0, ago=HOUR - 1) == "ALARM"


@pytest.mark.parametrize("extra", [0, 2, 20])
def test_a_silent_token_monitor_is_told(extra: int, made: dict[str, Any]) -> None:
    silent = (1 + extra) * 2 * HOUR
    data = series(made[TOKEN], {silent + hour * HOUR: 1.0 for hour in range(30)})
    assert state(made[TOKEN], data, (extra, False), ago=1) == "OK"
    assert state(made[TOKEN], data, (extra, False), ago=-1) == "ALARM"
    assert state(made[TOKEN], {}, (extra, False)) == "ALARM"


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("late", [0, 15 * MINUTE])
def test_an_email_retried_every_two_hours_stays_delayed(
    late: int, extra: int, made: dict[str, Any]
) -> None:
    """2 h is the longest wait between two attempts; the forwarder itself may take 5 minutes."""
    apart = 2 * HOUR + 5 * MINUTE
    data = series(made[DELAYED], {index * apart: 4000.0 + index for index in range(1, 12)})
    for ago in range(apart, 20 * HOUR, MINUTE):
        assert state(made[DELAYED], data, (extra, False), late=late, ago=ago - late) == "ALARM"


@pytest.mark.parametrize(
    ("lay", "expected"),
    [
        (69, "OK"),
        (70, "ALARM"),
        (80, "ALARM"),
    ],
)
def test_letters_of_three_days(lay: int, expected: str, made: dict[str, Any]) -> None:
    """In one DLQ or another, seen or not."""
    alarm = made[DLQ_AGE]
    for part in range(len(metrics_of(alarm))):
        points = {hour * HOUR + 1: float(hour < lay) for hour in range(100)}
        assert state(alarm, series(alarm, points, part), (0, False)) == expected


def test_a_dlq_that_is_emptied_every_day_is_not_left_lying(made: dict[str, Any]) -> None:
    points = {hour * HOUR + 1: float(hour % 24 != 0) for hour in range(100)}
    assert state(made[DLQ_AGE], series(made[DLQ_AGE], points), (0, False)) == "OK"


# -- what CloudWatch refuses -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ALARMS)
def test_cloudwatch_takes_it(name: str, made: dict[str, Any]) -> None:
    """PutMetricAlarm, Period; "Alarms on math expressions": 10 metrics, one period."""
    alarm = made[name]
    needed, periods, period = shape(alarm)
    assert period % 60 == 0
    assert period * periods <= (7 * 24 * HOUR if period >= HOUR else 24 * HOUR)
    assert 1 <= needed <= periods
    assert len(metrics_of(alarm)) <= 10
    assert math.isfinite(float(alarm.threshold))
