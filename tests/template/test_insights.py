"""The interpreter of saved queries against the examples of AWS's documents, and what it refuses."""

from typing import Any

import pytest

from tests.template.insights import Event, QueryError, event, run

# "Supported logs and discovered fields": fields in JSON logs.
CLOUDTRAIL = (
    '{"eventName": "StartInstances", "awsRegion": "us-east-2", "userIdentity": {"type": "IAMUser"},'
    ' "requestParameters": {"instancesSet": {"items": [{"instanceId": "i-abcde123"}]}}}'
)
REPORT = (
    "REPORT RequestId: 3604209a-e9a3-11e6-939a-754dd98c7be3\tDuration: 12.34 ms\t"
    "Billed Duration: 100 ms\tMemory Size: 128 MB\tMax Memory Used: 18 MB\t"
    "Init Duration: 150.5 ms\t"
)


def lines(*messages: str) -> list[Event]:
    return [event("/g", "s", at, message) for at, message in enumerate(messages)]


def rows(**columns: list[Any]) -> list[Event]:
    """Events that have these fields, and a time."""
    found = zip(*columns.values(), strict=True)
    return [
        {"@timestamp": at, **{k: v for k, v in zip(columns, row, strict=True) if v is not None}}
        for at, row in enumerate(found)
    ]


def times(query: str, events: list[Event]) -> list[int]:
    return [row["@timestamp"] for row in run(query, events)]


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("(duration>2000)", [1]),
        ("duration >= 2000", [0, 1]),
        ("(f1=10 or f3>25)", [0, 1]),
        ("(f1=10 and f3>25)", [0]),
        ("statusCode like /2\\d\\d/", [0]),
        ("statusCode not like /2\\d\\d/", [1]),
        ("statusCode in [300,404,500]", [1]),
        ('Type not in ["foo","bar",1]', [1]),
        ('Type in ["foo","bar",1]', [0]),
        ('f2 like "Exception"', [0]),
        ("f2 like 'Exception'", [0]),
        ("f2 like /Exception/", [0]),
        ("f2 =~ /Exception/", [0]),
        ("f2 like /(?i)exception/", [0, 1]),
        ('f2 not like "Exception"', [1]),
        ("ispresent(only)", [1]),
        ("not ispresent(only)", [0]),
        ('(f1=10 or f1=11) and f2 like "Exception"', [0]),
        ('only = "x" or f1 = 10', [0, 1]),
    ],
)
def test_filter(condition: str, found: list[int]) -> None:
    """The examples of "filter", and of matches and regular expressions."""
    events = rows(
        duration=[2000, 2001],
        f1=[10, 11],
        f2=["an Exception", "an exception"],
        f3=[26, 27],
        statusCode=["200", "404"],
        Type=["foo", "Foo"],
        only=[None, "x"],
    )
    assert times(f"filter {condition}", events) == found


def test_json_fields() -> None:
    events = lines("START RequestId: 1", CLOUDTRAIL)
    query = 'filter requestParameters.instancesSet.items.0.instanceId="i-abcde123"'
    assert times(query, events) == [1]
    assert run("fields userIdentity.type, awsRegion, nothing", events[1:]) == [
        {"userIdentity.type": "IAMUser", "awsRegion": "us-east-2", "nothing": None}
    ]
    assert run("fields eventName", lines("[not JSON]")) == [{"eventName": None}]


def test_without_fields_time_and_message_are_shown() -> None:
    assert run("filter eventName like /Start/", lines(CLOUDTRAIL)) == [
        {"@timestamp": 0, "@message": CLOUDTRAIL}
    ]


def test_memory_of_lambda() -> None:
    """The sample query that determines overprovisioned memory."""
    query = """filter @type = "REPORT"
    | stats max(@memorySize / 1000 / 1000) as provisionedMemoryMB,
        min(@maxMemoryUsed / 1000 / 1000) as smallestMemoryRequestMB,
        avg(@duration) as ms, max(@initDuration) as cold, count(*) as n by @log"""
    assert run(query, lines("START RequestId: 1", REPORT, REPORT.split("Init")[0])) == [
        {
            "@log": "123456789012:/g",
            "provisionedMemoryMB": 128,
            "smallestMemoryRequestMB": 18,
            "ms": 12.34,
            "cold": 150.5,
            "n": 2,
        }
    ]


def test_stats_sort_limit() -> None:
    events = rows(bytes=[1, 2, 4, 8], srcAddr=["a", "b", "a", "c"])
    query = "stats sum(bytes) as n by srcAddr | sort n desc | limit 2"
    assert run(query, events) == [{"srcAddr": "c", "n": 8}, {"srcAddr": "a", "n": 5}]
    assert [r["n"] for r in run("stats sum(bytes) as n by srcAddr | sort n asc", events)] == [
        2,
        5,
        8,
    ]


@pytest.mark.parametrize(
    ("aggregate", "result"),
    [
        ("count(*)", 4),
        ("count(only)", 1),
        ("min(n)", 1),
        ("max(n)", 8),
        ("avg(n)", 3.75),
        ("pct(n, 50)", 2),
        ("pct(n, 95)", 8),
        ("latest(n)", 8),
        ("latest(only)", "x"),
        ("max(missing)", None),
        ("latest(coalesce(missing, only))", "x"),
    ],
)
def test_aggregates(aggregate: str, result: Any) -> None:
    events = rows(n=[1, 2, 4, 8], only=[None, "x", None, None])
    assert run(f"stats {aggregate} as found", events) == [{"found": result}]


def test_groups_by_what_may_be_missing() -> None:
    events = rows(a=["x", None, "x"], b=[1, 2, 3])
    assert run("stats count(*) as n by a", events) == [{"a": "x", "n": 2}, {"a": None, "n": 1}]


def test_aliases_and_display() -> None:
    events = rows(f1=[3, 1], f2=["x", "y"])
    query = "fields f1 + 1 as g, f2 | sort g desc | limit 1 | display f2"
    assert run(query, events) == [{"f2": "x"}]
    assert run("fields f1 | fields f2", events)[0] == {"f1": 3, "f2": "x"}
    assert run("fields coalesce(f9, f2) as c", events) == [{"c": "x"}, {"c": "y"}]
    assert run("fields `f1`", events)[0] == {"f1": 3}


def test_comments() -> None:
    query = """fields @timestamp, @message
    # | filter @message like /delay/
    | limit 20"""
    assert len(run(query, lines("x", "y"))) == 2


@pytest.mark.parametrize(
    "query",
    [
        "",
        "field a",
        "FILTER a = 1",
        "filter",
        "filter a =",
        "filter a = 1 b",
        "filter a == 1",
        "filter a = 1 and b = 2 or c = 3",
        "filter a <> 1",
        "filter a like b",
        'filter a =~ "b"',
        "filter a in (1, 2)",
        "filter a in [1, 2",
        "filter missing != 1",
        "filter missing > 1",
        "filter (a = 1",
        'filter a = "x',
        "filter isempty(a)",
        "fields a,",
        "fields coalesce(a, b)",
        "fields a as",
        "fields foo-bar baz",
        "stats count(*)",
        "stats median(a) as m",
        "stats count(*) as n | stats max(n) as m",
        "stats count(*) as n by coalesce(a, b)",
        "sort a upwards",
        "sort missing desc",
        "sort a",
        "limit many",
        "limit 0",
        "limit 10001",
        "limit 1 | filter a = 1",
        "head 20",
        "parse @message '*' as x",
        "filter a = 1 || b = 2",
        "filter a = 1 && b = 2",
        "fields a + a * a as b",
    ],
)
def test_what_is_not_documented_is_refused(query: str) -> None:
    with pytest.raises(QueryError):
        run(query, rows(a=[1]))
