"""Who is retried how often, in the numbers of the design's table of errors. contract.py computes
what they amount to: how long each error is waited out, and that all of it fits into a history."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.template.contract import Project

PROJECT = Project(Path(__file__).parents[2])
TASKS = {task.name: task.state for task in PROJECT.tasks()}


class Retrier(NamedTuple):
    errors: tuple[str, ...]
    first: int  # seconds
    attempts: int
    longest: int | None = None  # seconds between two attempts
    jitter: str = "FULL"  # or many executions would come back together


def permanent(*errors: str) -> Retrier:
    return Retrier(errors, 0, 0, jitter="")


def weather(attempts: int, *errors: str) -> Retrier:
    """What passes by itself, some day: from seconds up to every 2 h."""
    return Retrier((*errors, "Lambda.TooManyRequestsException"), 5, attempts, 7200)


def lease(first: int, longest: int) -> Retrier:
    """Another attempt may have crashed; jitter could wait for nearly nothing."""
    return Retrier(("DeliveryInProgressError",), first, 16, longest, jitter="")


OF_LAMBDA = Retrier(
    (
        "Lambda.ClientExecutionTimeoutException",
        "Lambda.ServiceException",
        "Lambda.AWSLambdaException",
        "Lambda.SdkClientException",
    ),
    2,
    6,
)
ANYTHING_ELSE = Retrier(("States.ALL",), 5, 8, 300)
OF_AWS = Retrier(("States.ALL",), 5, 10, 300)
USUAL = (OF_LAMBDA, ANYTHING_ELSE)

RETRIERS: dict[str, tuple[Retrier, ...]] = {
    "Fetch email": (
        permanent("InvalidNotificationError", "EmailNotFoundError"),
        weather(32),
        *USUAL,
    ),
    "Look up routes": (permanent("InvalidRoutingRuleError"), weather(32), *USUAL),
    "Forward to Gmail": (
        permanent("GmailTokenError", "GmailRejectedError"),
        weather(32, "GmailTemporaryError"),
        lease(60, 400),
        *USUAL,
    ),
    "Send bounce": (
        permanent("BounceRejectedError", "EmailNotFoundError"),
        weather(19, "BounceThrottledError"),  # SES refuses a bounce after 24 h
        lease(30, 160),
        *USUAL,
    ),
    "Park": (OF_AWS,),
    "Record dead letters": (OF_AWS,),
}


def retrier(state: dict[str, Any]) -> Retrier:
    if state["MaxAttempts"] == 0:
        assert set(state) == {"ErrorEquals", "MaxAttempts"}
        return permanent(*state["ErrorEquals"])
    assert state["BackoffRate"] == 2
    return Retrier(
        tuple(state["ErrorEquals"]),
        state["IntervalSeconds"],
        state["MaxAttempts"],
        state.get("MaxDelaySeconds"),
        state.get("JitterStrategy", ""),
    )


def test_every_task_is_here() -> None:
    assert set(TASKS) == set(RETRIERS)


@pytest.mark.parametrize("name", RETRIERS)
def test_retries(name: str) -> None:
    assert tuple(map(retrier, TASKS[name]["Retry"])) == RETRIERS[name]


@pytest.mark.parametrize("name", RETRIERS)
def test_a_task_gives_up_a_little_after_its_function(name: str) -> None:
    """Later, a hanging function would only hold up the email; SQS and DynamoDB take seconds."""
    (task,) = (task for task in PROJECT.tasks() if task.name == name)
    function = PROJECT.function_of(task)
    limit = PROJECT.properties(function)["Timeout"] + 10 if function else 60
    assert task.state["TimeoutSeconds"] == limit
