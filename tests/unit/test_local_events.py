"""Which events a rule's pattern admits."""

import pytest

from local.events import matches

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
