"""What the history of an execution tells: outcomes, rules, attempts and a timeline."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Event = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How one delivery ended: delivered, bounced, suppressed, stored, dropped, dead-lettered or
    unparked."""

    action: str
    recipients: tuple[str, ...]
    outcome: str
    error: str = ""


@dataclass(frozen=True)
class Story:
    """An execution, told: its status, outcomes, matched rules, and the most attempts of a task.

    reasons are what an operator asks for: why suppressed, why dropped, why in the spam folder;
    milliseconds are those of the cloud's clock.
    """

    name: str
    arn: str
    status: str
    outcomes: tuple[Outcome, ...]
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    attempts: int
    milliseconds: float


def tell(execution: dict[str, Any], history: Iterable[Event]) -> Story:
    """From DescribeExecution and GetExecutionHistory."""
    events = list(history)
    started, stopped = execution["startDate"], execution.get("stopDate") or execution["startDate"]
    return Story(
        execution["name"],
        execution["executionArn"],
        execution["status"],
        tuple(_outcomes(events)),
        tuple(dict.fromkeys(_rules(events))),
        tuple(dict.fromkeys(_reasons(events))),
        max(_attempts(events).values(), default=0),
        (stopped - started).total_seconds() * 1000,
    )


def _outcomes(events: list[Event]) -> Iterator[Outcome]:
    for event in events:
        details = event.get("stateExitedEventDetails", {})
        if details.get("name") in ("For each delivery", "Park email"):
            for made in json.loads(details["output"])["outcomes"]:
                yield Outcome(
                    made.get("action", ""),
                    tuple(made.get("recipients", [])),
                    made.get("outcome", "unknown"),
                    made.get("error", ""),
                )


def _rules(events: list[Event]) -> Iterator[str]:
    for event in events:
        details = event.get("stateExitedEventDetails", {})
        if details.get("name") == "Look up routes":
            for delivery in json.loads(details["output"])["deliveries"]:
                if delivery.get("matchedRule"):
                    yield from delivery["matchedRule"].split(", ")


def _reasons(events: list[Event]) -> Iterator[str]:
    verdicts = {"Drop as virus": "virus", "Store as loop": "loop", "Deliver as spam": "SPAM"}
    for event in events:
        if entered := event.get("stateEnteredEventDetails"):
            if entered["name"] in verdicts:
                yield verdicts[entered["name"]]
        elif succeeded := event.get("taskSucceededEventDetails"):
            payload = json.loads(succeeded["output"]).get("Payload", {})
            if reason := payload.get("reason"):
                yield reason


def _attempts(events: list[Event]) -> Counter[int]:
    """Attempts per entered delivery state (its event id), told by the chain of events."""
    by_id = {event["id"]: event for event in events}
    attempts: Counter[int] = Counter()
    for event in events:
        if event["type"] != "TaskScheduled":
            continue
        entered = event
        while "stateEnteredEventDetails" not in entered:
            entered = by_id[entered["previousEventId"]]
        if entered["stateEnteredEventDetails"]["name"] in ("Forward to Gmail", "Send bounce"):
            attempts[entered["id"]] += 1
    return attempts


def timeline(events: Iterable[Event]) -> Iterator[tuple[float, str, str]]:
    """(milliseconds since the start, state or empty, what happened)."""
    start: datetime | None = None
    for event in events:
        start = start or event["timestamp"]
        offset = (event["timestamp"] - start).total_seconds() * 1000
        if entered := event.get("stateEnteredEventDetails"):
            yield offset, entered["name"], "entered"
        elif failed := event.get("taskFailedEventDetails"):
            yield offset, "", f"failed: {failed['error']}"
        elif timed_out := event.get("taskTimedOutEventDetails"):
            yield offset, "", f"failed: {timed_out['error']}"
        elif "taskSucceededEventDetails" in event:
            yield offset, "", "succeeded"
        elif event["type"].startswith("Execution"):
            yield offset, "", event["type"].removeprefix("Execution").lower()
