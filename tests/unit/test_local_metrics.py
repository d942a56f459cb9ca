"""The local CloudWatch evaluates alarms and calculates as AWS's documents say."""

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from local.metrics import Reading, calculate, data_points, evaluate, statistics

NOON = datetime(2026, 11, 25, 12)  # noqa: DTZ001  as moto keeps times


def alarm(periods: int, needed: int, missing: str, **more: Any) -> Any:
    """One of moto's, as far as it is read."""
    return SimpleNamespace(
        evaluation_periods=periods,
        datapoints_to_alarm=needed,
        treat_missing_data=missing,
        comparison_operator="GreaterThanOrEqualToThreshold",
        threshold=1.0,
        **{"metric_data_queries": [], **more},
    )


# CloudWatch User Guide, "How alarm state is evaluated when data is missing": 5 data points for 3
# evaluation periods, the newest on the right; 0 is fine, X is breaching, - is missing.
@pytest.mark.parametrize(
    ("points", "needed", "breaching", "not_breaching"),
    [
        ("0 - X - X", 3, "OK", "OK"),
        ("0 - - - -", 3, "OK", "OK"),
        ("- - - - -", 3, "ALARM", "OK"),
        ("0 X X - X", 3, "ALARM", "ALARM"),
        ("- - X - -", 3, "ALARM", "OK"),
        ("0 - X - X", 2, "ALARM", "ALARM"),
        ("0 0 X 0 X", 2, "ALARM", "ALARM"),
        ("0 - X - -", 2, "ALARM", "OK"),
        ("- - - - 0", 2, "ALARM", "OK"),
        ("- - - X -", 2, "ALARM", "OK"),
    ],
)
def test_missing_data(points: str, needed: int, breaching: str, not_breaching: str) -> None:
    values = [{"0": 0.0, "X": 1.0, "-": None}[point] for point in points.split()]
    assert evaluate(alarm(3, needed, "breaching"), values) == breaching
    assert evaluate(alarm(3, needed, "notBreaching"), values) == not_breaching


@pytest.mark.parametrize("missing", ["missing", "ignore", None])
def test_other_ways_to_treat_missing_data_are_refused(missing: Any) -> None:
    with pytest.raises(KeyError):
        evaluate(alarm(1, 1, missing), [None])


@pytest.mark.parametrize(
    ("expression", "values", "result"),
    [
        ("a + b", {"a": 2, "b": 3}, 5),
        ("a - b", {"a": 2, "b": 3}, -1),
        ("a - b + a", {"a": 2, "b": 3}, 1),
        ("a + b", {"a": 2, "b": None}, 2),  # "missing values … are treated as 0"
        ("a - b", {"a": None, "b": 3}, -3),
        ("a + b", {"a": None, "b": None}, None),
        ("a", {"a": None}, None),
        ("FILL(a, 0)", {"a": None}, 0),
        ("FILL(a, 7) + FILL(b, 0)", {"a": None, "b": 3}, 10),
        ("FILL(a, 7)", {"a": 0}, 0),
    ],
)
def test_metric_math(expression: str, values: dict[str, float | None], result: float) -> None:
    assert calculate(expression, values) == result


def test_a_sum_of_nothing_under_the_other_reading() -> None:
    assert calculate("a + b", {"a": None, "b": None}, zeros=True) == 0
    assert calculate("a", {"a": None}, zeros=True) is None


@pytest.mark.parametrize(
    "expression", ["a * b", "a + 1", "SUM(METRICS())", "FILL(a, REPEAT)", "IF(a > 1, a)"]
)
def test_other_metric_math_is_refused(expression: str) -> None:
    with pytest.raises(NotImplementedError):
        calculate(expression, {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("statistic", "result"),
    [("Sum", 210.0), ("Maximum", 20.0), ("Minimum", 1.0), ("p95", 19.0)],
)
def test_statistics(statistic: str, result: float) -> None:
    points = [(NOON - timedelta(seconds=second), float(second)) for second in range(1, 21)]
    assert statistics(points, 60, statistic, 1, NOON) == [result]


def test_periods_end_when_they_are_asked_for() -> None:
    future, newest, before, too_old = (0,), (1, 60), (61, 120), (121,)
    ago = [*future, *newest, *before, *too_old]
    points = [(NOON - timedelta(seconds=seconds), float(seconds)) for seconds in ago]
    assert statistics(points, 60, "Sum", 2, NOON) == [sum(before), sum(newest)]


def test_what_is_late_has_not_come() -> None:
    key = ("N", "M", frozenset({("D", "v")}))
    series = {key: [(NOON - timedelta(seconds=s), 1.0) for s in (30, 90, 150)]}
    late = Reading(late=timedelta(seconds=60), extra=1)
    metric = alarm(
        *(2, 1, "notBreaching"),
        namespace="N",
        metric_name="M",
        dimensions=[SimpleNamespace(name="D", value="v")],
        period=60,
        statistic="Sum",
    )
    assert data_points(series, metric, NOON, late) == [1, 1, None]
    assert data_points(series, metric, NOON, Reading(extra=0)) == [1, 1]
