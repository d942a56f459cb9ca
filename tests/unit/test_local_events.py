"""Which events a rule's pattern admits, and what the bus tells."""

import json
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from local.events import EventBus, install_parameter_changes, matches, rate
from local.faults import Faults
from local.iam import REGION
from local.patches import Patches

ROOT = Path(__file__).parents[2]

PATTERN = {
    "source": ["aws.states"],
    "detail": {"status": ["FAILED", "ABORTED"], "stateMachineArn": ["arn"]},
}


@pytest.mark.parametrize(
    ("event", "admitted"),
    [
        ({"source": "aws.states", "detail": {"status": "FAILED", "stateMachineArn": "arn"}}, True),
        (
            {"source": "aws.states", "detail": {"status": "RUNNING", "stateMachineArn": "arn"}},
            False,
        ),
        ({"source": "aws.states", "detail": {"status": "FAILED", "stateMachineArn": "no"}}, False),
        ({"source": "aws.states", "detail": {"status": "FAILED"}}, False),
        ({"source": "aws.states"}, False),
        ({"detail": {"status": "FAILED", "stateMachineArn": "arn"}}, False),
    ],
)
def test_matches(event: dict[str, object], admitted: bool) -> None:
    assert matches(PATTERN, event) is admitted


TOKENS = {"detail": {"name": ["/p/token", {"prefix": "/p/tokens/"}]}}


@pytest.mark.parametrize(
    ("name", "admitted"),
    [
        ("/p/token", True),
        ("/p/tokens/anna", True),
        ("/p/tokens", False),
        ("/p/token/anna", False),
        ("/q/p/tokens/anna", False),
        (None, False),
    ],
)
def test_prefixes(name: str | None, admitted: bool) -> None:
    assert matches(TOKENS, {"detail": {"name": name}}) is admitted


@pytest.mark.parametrize(
    ("wanted", "value", "admitted"),
    [
        (["a"], ["b", "a"], True),  # of an array one element is enough
        (["a"], ["b"], False),
        ([{"prefix": "a"}], ["b", "ab"], True),
        ([1], True, False),
        ([True], True, True),
        ([1], "1", False),
        ([None], None, True),
        ([""], "", True),
        ([{"prefix": "a"}], 1, False),
    ],
)
def test_values(wanted: list[Any], value: Any, admitted: bool) -> None:
    assert matches({"field": wanted}, {"field": value}) is admitted


def test_a_field_that_is_null_is_not_one_that_is_missing() -> None:
    assert not matches({"field": [None]}, {})


@pytest.mark.parametrize(
    "pattern",
    [
        {"name": [{"suffix": "x"}]},
        {"name": ["x", {"anything-but": "y"}]},
        {"name": [{"exists": True}]},
        {"name": [{"prefix": {"equals-ignore-case": "x"}}]},
        {"detail": {"n": [{"numeric": [">", 0]}]}},
        {"$or": [{"name": ["x"]}]},
    ],
    ids=str,
)
def test_what_it_cannot_match_is_an_error_whatever_the_event(pattern: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError):
        matches(pattern, {"name": "x"})


@pytest.mark.parametrize("wanted", ["x", [], None, 1], ids=str)
def test_what_eventbridge_refuses_is_an_error(wanted: Any) -> None:
    with pytest.raises(ValueError, match="name"):
        matches({"name": wanted}, {"name": "x"})


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("rate(1 minute)", 60),
        ("rate(1 hour)", 3600),
        ("rate(5 hours)", 18000),
        ("rate(1 day)", 86400),
    ],
)
def test_rates(expression: str, seconds: int) -> None:
    assert rate(expression) == seconds


@pytest.mark.parametrize(
    "expression",
    [
        "rate(1 hours)",
        "rate(5 hour)",
        "rate(0 hours)",
        "rate(1 week)",
        "cron(0 * * * ? *)",
        "1 hour",
    ],
)
def test_other_schedules_are_an_error(expression: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        rate(expression)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"EventPattern": {"name": [{"suffix": "x"}]}}, NotImplementedError),
        ({"ScheduleExpression": "cron(0 * * * ? *)"}, ValueError),
    ],
    ids=str,
)
def test_a_bus_refuses_such_rules_at_once(rule: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        EventBus({"rule": rule}, lambda *_: ("", False), time.time, 1.0, Faults())


def test_what_the_bus_tells_of_a_parameter() -> None:
    """The event is the one that the function's sample shows."""
    told: list[Any] = []
    rules = {
        "all": {
            "EventPattern": {"source": ["aws.ssm"]},
            "Targets": [{"Arn": "arn:aws:lambda:r:a:function:f"}],
        }
    }

    def invoke(_function: str, event: Any) -> tuple[str, bool]:
        told.append(event)
        return "{}", False

    with mock_aws():
        patches = Patches()
        bus = EventBus(rules, invoke, lambda: 1795514400.0, 1.0, Faults())
        install_parameter_changes(patches, bus)
        try:
            ssm = boto3.client(
                "ssm", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
            )
            for _ in range(2):
                ssm.put_parameter(
                    Name="/ses-mail/test/gmail-tokens/anna_40example.com",
                    Value="secret",
                    Type="SecureString",
                    Overwrite=True,
                )
            bus.paused = True
            ssm.put_parameter(Name="/other", Value="lost", Type="String")
        finally:
            patches.undo()
    while bus.under_way:
        time.sleep(0.01)
    sample = json.loads((ROOT / "events/token_monitor.json").read_text())
    assert sorted(event["detail"].pop("operation") for event in told) == ["Create", "Update"]
    del sample["detail"]["operation"]
    same = {"id": sample["id"], "time": sample["time"]}
    assert all({**event, **same} == sample for event in told)
    assert "secret" not in repr(told)
