"""What is told of an execution, from histories as Step Functions writes them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.history import Attempt, Story, Task, error_message, longest_wait, tell

ROOT = Path(__file__).parent.parent.parent
BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)
DEFINITION = yaml.safe_load((ROOT / "statemachines/process_email.asl.yaml").read_text())


class History:
    """Events with ids and times of their own; each follows the last unless told otherwise."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, kind: str, previous: int | None = None, **details: Any) -> int:
        number = len(self.events) + 1
        self.events.append(
            {
                "id": number,
                "previousEventId": number - 1 if previous is None else previous,
                "type": kind,
                "timestamp": BEGIN + timedelta(seconds=number),
                **details,
            }
        )
        return number

    def entered(self, name: str, previous: int | None = None, kind: str = "Task") -> int:
        return self.add(f"{kind}StateEntered", previous, stateEnteredEventDetails={"name": name})

    def exited(
        self, name: str, output: Any, previous: int | None = None, kind: str = "Task"
    ) -> int:
        details = {"name": name, "output": json.dumps(output)}
        return self.add(f"{kind}StateExited", previous, stateExitedEventDetails=details)

    def failed(self, error: str, previous: int | None = None, cause: str = "") -> int:
        scheduled = self.add("TaskScheduled", previous)
        details = {"error": error, "cause": cause}
        return self.add("TaskFailed", scheduled, taskFailedEventDetails=details)

    def succeeded(self, payload: Any, previous: int | None = None) -> int:
        scheduled = self.add("TaskScheduled", previous)
        details = {"output": json.dumps({"Payload": payload})}
        return self.add("TaskSucceeded", scheduled, taskSucceededEventDetails=details)

    def tell(self, status: str = "RUNNING") -> Story:
        execution = {
            "name": "m1",
            "executionArn": "arn:m1",
            "status": status,
            "startDate": BEGIN,
            "input": json.dumps({"mail": {}, "receipt": {"recipients": ["a@x.example"]}}),
        }
        return tell(execution, self.events)


def delivery(target: str, **more: Any) -> dict[str, Any]:
    return {
        "action": "forward-to-gmail",
        "target": target,
        "recipients": [f"r-{target}"],
        "matchedRule": f"rule-{target}",
        "reason": "address",
        **more,
    }


def begun(*targets: str) -> tuple[History, int]:
    """A history up to the Map, and the event that its iterations follow."""
    history = History()
    history.add("ExecutionStarted", 0)
    history.entered("Look up routes", 0)
    history.exited("Look up routes", {"deliveries": [delivery(t) for t in targets]})
    history.entered("For each delivery", kind="Map")
    return history, history.add("MapStateStarted")


def iteration(history: History, index: int, previous: int, state: str = "Forward to Gmail") -> int:
    """The event that the iteration's states follow."""
    details = {"name": "For each delivery", "index": index}
    started = history.add("MapIterationStarted", previous, mapIterationStartedEventDetails=details)
    return history.entered(state, started)


def test_attempts_of_deliveries_that_interleave() -> None:
    history, started = begun("a", "b")
    a = iteration(history, 0, started)
    b = iteration(history, 1, started)
    a = history.failed("GmailTemporaryError", a, '{"errorMessage": "429 \\"slow\\"", "stack')
    b = history.succeeded({"resultId": "g1", "reason": "already-there"}, b)
    a = history.failed("GmailTemporaryError", a)
    history.exited("Forward to Gmail", {"outcome": "delivered", "recipients": ["r-b"]}, b)
    first, second = (story := history.tell()).deliveries
    assert (first.outcome, second.outcome, second.result_id) == ("", "delivered", "g1")
    (task,) = first.tasks
    assert task.errors == ["GmailTemporaryError"] * 2
    assert [attempt.cause for attempt in task.attempts] == ['429 "slow"', ""]
    assert [len(task.attempts) for task in second.tasks] == [1]
    assert story.attempts == 2
    assert story.rules == ("rule-a", "rule-b")
    assert story.reasons == ("already-there",)


def test_an_iteration_that_follows_another_ones_end() -> None:
    """Its events hang on the chain of the one before; so does what comes after the Map."""
    history, started = begun("a", "b")
    a = iteration(history, 0, started)
    a = history.succeeded({"resultId": "g1", "reason": ""}, a)
    a = history.exited("Forward to Gmail", {"outcome": "delivered", "recipients": ["r-a"]}, a)
    b = iteration(history, 1, a)
    b = history.failed("GmailTokenError", b, "no token")
    b = history.exited("Forward to Gmail", {"failure": {}}, b)
    b = history.entered("Park", b)
    b = history.succeeded(None, b)
    letter = {"outcome": "dead-lettered", "error": "GmailTokenError", "recipients": ["r-b"]}
    b = history.exited("Park", letter, b)
    b = history.exited("For each delivery", {"outcomes": []}, b, kind="Map")
    b = history.entered("Record dead letters", b)
    history.failed("DynamoDB.Busy", b)
    story = history.tell("FAILED")
    first, second = story.deliveries
    assert first.outcome == "delivered"
    assert (second.outcome, second.error, second.cause) == (
        "dead-lettered",
        "GmailTokenError",
        "no token",
    )
    assert [task.state for task in second.tasks] == ["Forward to Gmail", "Park"]
    assert (story.tasks[-1].state, story.tasks[-1].iteration) == ("Record dead letters", None)


def test_an_email_that_is_parked_as_a_whole() -> None:
    history = History()
    history.entered("Fetch email", 0)
    history.failed("EmailNotFoundError", cause="no object")
    whole = {
        "action": "fetch",
        "target": "",
        "recipients": ["a@x.example"],
        "matchedRule": "",
        "failure": {"Error": "EmailNotFoundError", "Cause": '{"errorMessage": "no object"}'},
    }
    history.exited("Fetch email", {"deliveries": [whole]})
    history.entered("For each delivery", kind="Map")
    b = iteration(history, 0, history.add("MapStateStarted"), "Park")
    b = history.succeeded(None, b)
    parked = {"outcome": "dead-lettered", "error": "EmailNotFoundError"}
    history.exited("Park", {**parked, "action": "fetch", "recipients": ["a@x.example"]}, b)
    (made,) = history.tell("FAILED").deliveries
    assert (made.outcome, made.error, made.cause, made.recipients) == (
        "dead-lettered",
        "EmailNotFoundError",
        "no object",
        ("a@x.example",),
    )


def test_an_email_that_was_parked_before_park_was_one_state() -> None:
    history = History()
    history.entered("Fetch email", 0)
    history.failed("EmailNotFoundError", cause="no object")
    history.exited("Fetch email", {"failure": {}})
    history.entered("Park email")
    history.succeeded(None)
    parked = {
        "action": "fetch",
        "recipients": ["a@x.example"],
        "outcome": "dead-lettered",
        "error": "EmailNotFoundError",
    }
    history.exited("Park email", {"outcomes": [parked]})
    (made,) = history.tell("FAILED").deliveries
    assert (made.outcome, made.error, made.cause) == (
        "dead-lettered",
        "EmailNotFoundError",
        "no object",
    )


def task(state: str, *errors: str) -> Task:
    return Task(state, 0, [Attempt(BEGIN, BEGIN, error) for error in errors])


@pytest.mark.parametrize(
    ("state", "errors", "seconds"),
    [
        ("Forward to Gmail", ["GmailTemporaryError"], 5),
        ("Forward to Gmail", ["GmailTemporaryError"] * 3, 20),
        ("Forward to Gmail", ["GmailTemporaryError"] * 20, 7200),
        # Each retrier counts for itself.
        ("Forward to Gmail", ["GmailTemporaryError"] * 3 + ["DeliveryInProgressError"], 60),
        ("Forward to Gmail", ["Surprise"] * 2, 10),
        ("Forward to Gmail", ["GmailTokenError"], None),
        ("Forward to Gmail", ["GmailTemporaryError"] * 33, None),
        ("Look up routes", ["ClientError"], 5),
        ("No such state", ["ClientError"], None),
        ("Forward to Gmail", [], None),
    ],
)
def test_the_longest_wait(state: str, errors: list[str], seconds: float | None) -> None:
    assert longest_wait(DEFINITION, task(state, *errors)) == seconds


def test_what_is_no_json_of_lambda_is_its_own_message() -> None:
    assert error_message("plain") == "plain"
