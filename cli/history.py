"""What an execution of the state machine did, read from its description and its history."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ses_mail.addresses import canonical

Event = Mapping[str, Any]

_VERDICTS = {"Drop as virus": "virus", "Store as loop": "loop", "Deliver as spam": "SPAM"}
_FAILED = (
    "taskFailedEventDetails",
    "taskTimedOutEventDetails",
    "taskSubmitFailedEventDetails",
    "taskStartFailedEventDetails",
    "evaluationFailedEventDetails",
)


@dataclass
class Attempt:
    """One try of a task; cause is the error's message without Lambda's stack trace."""

    started: datetime
    ended: datetime | None = None
    error: str = ""
    cause: str = ""


@dataclass
class Task:
    """A task state that was entered; iteration is the delivery's number, None outside the Map."""

    state: str
    iteration: int | None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        return [attempt.error for attempt in self.attempts if attempt.error]


@dataclass(kw_only=True)
class Delivery:
    """What the router decided for some recipients, and what became of it.

    outcome: delivered, bounced, suppressed, stored, dropped, dead-lettered, unparked, or empty
    while nobody knows yet. reason is the router's, why the outcome's (`null-sender`).
    """

    action: str
    recipients: tuple[str, ...]
    target: str = ""
    matched_rule: str = ""
    reason: str = ""
    outcome: str = ""
    error: str = ""
    cause: str = ""
    why: str = ""
    result_id: str = ""
    at: datetime | None = None
    tasks: list[Task] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One line of the timeline; state is empty for the end of a task."""

    at: datetime
    iteration: int | None
    state: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Story:
    """An execution as a story; verdict is `virus`, `loop`, `SPAM`, or empty."""

    name: str
    arn: str
    status: str
    error: str
    cause: str
    started: datetime
    stopped: datetime | None
    input: dict[str, Any]
    verdict: str
    deliveries: tuple[Delivery, ...]
    tasks: tuple[Task, ...]
    steps: tuple[Step, ...]

    @property
    def redrive(self) -> dict[str, Any]:
        redrive = self.input.get("redrive")
        return redrive if isinstance(redrive, dict) else {}

    @property
    def recipients(self) -> list[str]:
        """The envelope recipients that this execution serves."""
        everyone = self.input.get("receipt", {}).get("recipients", [])
        return list(self.redrive.get("recipients", everyone))

    def of(self, recipient: str) -> list[Delivery]:
        """What it did, or tries to do, for a recipient."""
        return [d for d in self.deliveries if has(d.recipients, recipient)]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that matched, in order."""
        matched = (d.matched_rule for d in self.deliveries if d.matched_rule)
        return tuple(dict.fromkeys(rule for rules in matched for rule in rules.split(", ")))

    @property
    def reasons(self) -> tuple[str, ...]:
        """What an operator asks for: why suppressed, why dropped, why in the spam folder."""
        whys = [self.verdict, *(delivery.why for delivery in self.deliveries)]
        return tuple(dict.fromkeys(why for why in whys if why))

    @property
    def attempts(self) -> int:
        """The most attempts of one delivery."""
        return max(
            (len(t.attempts) for t in self.tasks if t.state in ("Forward to Gmail", "Send bounce")),
            default=0,
        )

    @property
    def milliseconds(self) -> float:
        """From start to end; 0 while it runs."""
        return ((self.stopped or self.started) - self.started).total_seconds() * 1000


def has(recipients: Iterable[str], recipient: str) -> bool:
    """Whether an address is among them, however it is written."""
    return canonical(recipient) in map(canonical, recipients)


def tell(execution: Mapping[str, Any], history: Iterable[Event]) -> Story:
    """From DescribeExecution (input as text or parsed) and GetExecutionHistory, oldest first."""
    teller = _Teller()
    for event, where in located(history):
        teller.take(event, where)
    given = execution["input"]
    return Story(
        name=execution["name"],
        arn=execution["executionArn"],
        status=execution["status"],
        error=execution.get("error", ""),
        cause=execution.get("cause", ""),
        started=execution["startDate"],
        stopped=execution.get("stopDate"),
        input=json.loads(given) if isinstance(given, str) else given,
        verdict=teller.verdict,
        deliveries=tuple(teller.deliveries + teller.parked),
        tasks=tuple(teller.tasks.values()),
        steps=tuple(teller.steps),
    )


@dataclass(frozen=True, kw_only=True)
class Where:
    """The state that an event belongs to, the event that entered it, and the Map's iteration.

    left is the state before it on its way, caught whether that was left by its Catch.
    """

    state: str = ""
    entered: int = 0
    iteration: int | None = None
    left: str = ""
    caught: bool = False


def located(history: Iterable[Event]) -> Iterator[tuple[Event, Where]]:
    """Events, oldest first, each with the place that it happened at."""
    places: dict[int, Where] = {}
    failures: set[int] = set()
    for event in history:
        previous = event.get("previousEventId", 0)
        where = places.get(previous, Where())
        if event["type"] == "MapIterationStarted":
            # Its previous event may be of another iteration.
            where = Where(iteration=event["mapIterationStartedEventDetails"]["index"])
        elif event["type"] == "MapStateExited":
            where = replace(where, iteration=None)
        elif entered := event.get("stateEnteredEventDetails"):
            where = replace(where, state=entered["name"], entered=event["id"])
        if exited := event.get("stateExitedEventDetails"):
            where = replace(where, left=exited["name"], caught=previous in failures)
        elif failure_of(event) is not None:
            failures.add(event["id"])
        places[event["id"]] = where
        yield event, where


def failure_of(event: Event) -> Mapping[str, Any] | None:
    """The details of an event that ends a task's attempt with an error; None for others."""
    return next((event[name] for name in _FAILED if name in event), None)


class _Teller:
    """Takes events in order, each with its place."""

    def __init__(self) -> None:
        self.verdict = ""
        self.deliveries: list[Delivery] = []
        self.parked: list[Delivery] = []
        self.tasks: dict[int, Task] = {}
        self.steps: list[Step] = []

    def take(self, event: Event, where: Where) -> None:
        kind = event["type"]
        if "stateEnteredEventDetails" in event:
            self.verdict = _VERDICTS.get(where.state, self.verdict)
            self._step(event, where.iteration, where.state, "entered")
        elif details := event.get("stateExitedEventDetails"):
            self._exited(event, where.iteration, details)
        elif kind in ("TaskScheduled", "TaskSucceeded") or failure_of(event) is not None:
            self._task(event, where)
        elif kind.startswith("Execution"):
            self._step(event, None, "", kind.removeprefix("Execution").lower())

    def _task(self, event: Event, where: Where) -> None:
        iteration, failed = where.iteration, failure_of(event)
        if where.entered not in self.tasks:
            self.tasks[where.entered] = task = Task(where.state, iteration)
            if delivery := self._delivery(iteration):
                delivery.tasks.append(task)
        attempts = self.tasks[where.entered].attempts
        if event["type"] == "TaskScheduled" or not attempts:
            attempts.append(Attempt(event["timestamp"]))
        if failed is not None:
            attempts[-1].ended = event["timestamp"]
            attempts[-1].error = failed.get("error", event["type"])
            attempts[-1].cause = error_message(failed.get("cause", ""))
            self._step(event, iteration, "", f"failed: {attempts[-1].error}")
        elif event["type"] == "TaskSucceeded":
            attempts[-1].ended = event["timestamp"]
            self._step(event, iteration, "", "succeeded")
            payload = _object(event["taskSucceededEventDetails"].get("output")).get("Payload")
            delivery = self._delivery(iteration)
            if delivery and isinstance(payload, dict):
                delivery.result_id = payload.get("resultId", "")
                delivery.why = payload.get("reason", "")

    def _exited(self, event: Event, iteration: int | None, details: Mapping[str, Any]) -> None:
        output = _object(details.get("output"))
        delivery = self._delivery(iteration)
        if details["name"] in ("Fetch email", "Look up routes") and "deliveries" in output:
            self.deliveries = [
                Delivery(
                    action=made["action"],
                    target=made.get("target", ""),
                    recipients=tuple(made.get("recipients", [])),
                    matched_rule=made.get("matchedRule", ""),
                    reason=made.get("reason", ""),
                    cause=error_message(made.get("failure", {}).get("Cause", "")),
                )
                for made in output["deliveries"]
            ]
        elif details["name"] == "Park email":  # of executions before the state became `Park`
            for made in output.get("outcomes", []):
                parked = Delivery(action=made["action"], recipients=tuple(made["recipients"]))
                self._end(parked, made, event["timestamp"], list(self.tasks.values()))
                self.parked.append(parked)
        elif delivery and "outcome" in output:
            self._end(delivery, output, event["timestamp"], delivery.tasks)

    @staticmethod
    def _end(delivery: Delivery, made: Mapping[str, Any], at: datetime, tasks: list[Task]) -> None:
        delivery.outcome = made.get("outcome", "unknown")
        delivery.error = made.get("error", "")
        delivery.at = at
        failed = [a for task in tasks for a in task.attempts if a.error == delivery.error]
        if failed and delivery.error:
            delivery.cause = failed[-1].cause

    def _delivery(self, iteration: int | None) -> Delivery | None:
        if iteration is None or iteration >= len(self.deliveries):
            return None
        return self.deliveries[iteration]

    def _step(self, event: Event, iteration: int | None, state: str, what: str) -> None:
        self.steps.append(Step(event["timestamp"], iteration, state, what))


def _object(text: str | None) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def error_message(cause: str) -> str:
    """The message inside the JSON that Lambda makes of an exception, which may have been cut."""
    found = re.search(r'"errorMessage": ?("(?:[^"\\]|\\.)*")', cause)
    return str(json.loads(found[1])) if found else cause


def longest_wait(definition: Mapping[str, Any], task: Task) -> float | None:
    """Seconds from the last failure to the next attempt at most (jitter makes it sooner).

    None if the state machine's definition has no retry for it.
    """
    state = _find(definition, task.state)
    counts: dict[int, int] = {}
    wait: float | None = None
    for error in task.errors:
        wait = None
        for number, retrier in enumerate(state.get("Retry", [])):
            if error not in retrier["ErrorEquals"] and "States.ALL" not in retrier["ErrorEquals"]:
                continue
            counts[number] = counts.get(number, 0) + 1
            if counts[number] <= retrier.get("MaxAttempts", 3):
                grown = retrier.get("IntervalSeconds", 1) * retrier.get("BackoffRate", 2) ** (
                    counts[number] - 1
                )
                wait = min(grown, retrier.get("MaxDelaySeconds", grown))
            break
    return wait


def _find(definition: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    states = definition.get("States", {})
    if name in states:
        found: Mapping[str, Any] = states[name]
        return found
    for state in states.values():
        if found := _find(state.get("ItemProcessor", {}), name):
            return found
    return {}
