"""EventBridge and SNS, as far as deliveries may fail: status changes of executions, changed
parameters, schedules, and dead letters of the subscription."""

from __future__ import annotations

import json
import re
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from moto.sns.models import Subscription
from moto.sqs.models import sqs_backends
from moto.ssm.models import SimpleSystemManagerBackend

from local.asl import iso
from local.faults import DUPLICATE, LOST, Faults, message_id_in
from local.iam import ACCOUNT, REGION
from local.patches import Patches

# Lambda's retries of an asynchronous invocation that failed, in seconds.
RETRIES = (60, 120)


class EventBus:
    """The default event bus: rules of the template with a pattern, and those with a schedule.

    `invoke(function, event)` returns (payload, whether it is an error); a rule's targets are
    functions only.
    """

    def __init__(
        self,
        rules: Mapping[str, Mapping[str, Any]],
        invoke: Callable[[str, Any], tuple[str, bool]],
        now: Callable[[], float],
        factor: float,
        faults: Faults,
    ) -> None:
        for rule in rules.values():
            checked(rule.get("EventPattern", {}))
            if "ScheduleExpression" in rule:
                rate(rule["ScheduleExpression"])
        self._rules = rules
        self._invoke = invoke
        self._now = now
        self._factor = factor
        self._faults = faults
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.under_way = 0
        self.paused = False  # status changes and changed parameters are lost, all of them
        self.failures: list[str] = []  # of deliveries that were given up

    def stop(self) -> None:
        self._stopped.set()

    def execution_ended(self, execution: Any) -> None:
        """Tell the status change of an execution, best effort as on AWS."""
        detail = {
            "executionArn": execution.exec_arn,
            "stateMachineArn": execution.state_machine.arn,
            "name": execution.name,
            "status": execution.status,
            "startDate": int(execution.start_date.timestamp() * 1000),
            "stopDate": int(execution.stop_date.timestamp() * 1000),
            "input": json.dumps(execution.input_data),
            "inputDetails": {"included": True},
        }
        event = self._event("aws.states", "Step Functions Execution Status Change", detail)
        self._tell({**event, "resources": [execution.exec_arn]}, execution.name)

    def parameter_put(self, name: str, operation: str, description: str, kind: str) -> None:
        """Tell the change of a parameter, best effort as on AWS; operation is Create or Update."""
        detail = {"operation": operation, "name": name, "type": kind, "description": description}
        event = self._event("aws.ssm", "Parameter Store Change", detail)
        arn = f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/{name.lstrip('/')}"
        self._tell({**event, "resources": [arn]}, name)

    def _tell(self, event: Mapping[str, Any], key: str) -> None:
        if self.paused:
            return
        for rule in self._rules.values():
            if "EventPattern" in rule and matches(rule["EventPattern"], event):
                kind = self._faults.strike("events:Deliver", "eventbridge", key)
                for _ in range({LOST: 0, DUPLICATE: 2}.get(kind or "", 1)):
                    self._deliver(rule, event)

    def tick(self) -> None:
        """The time of every scheduled rule has come; returns when their targets have ended."""
        event = self._event("aws.events", "Scheduled Event", {})
        threads = [
            thread
            for rule in self._rules.values()
            if "ScheduleExpression" in rule
            for thread in self._deliver(rule, event)
        ]
        for thread in threads:
            thread.join()

    def _event(self, source: str, kind: str, detail: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "version": "0",
            "id": str(uuid.uuid4()),
            "detail-type": kind,
            "source": source,
            "account": ACCOUNT,
            "time": iso(self._now()),
            "region": REGION,
            "resources": [],
            "detail": dict(detail),
        }

    def _deliver(self, rule: Mapping[str, Any], event: Any) -> list[threading.Thread]:
        threads = []
        for target in rule["Targets"]:
            function = target["Arn"].rsplit(":", 1)[-1]
            with self._lock:
                self.under_way += 1
            thread = threading.Thread(target=self._run, args=(function, event), daemon=True)
            thread.start()
            threads.append(thread)
        return threads

    def _run(self, function: str, event: Any) -> None:
        try:
            for pause in (0, *RETRIES):
                if self._stopped.wait(pause * self._factor):
                    return
                payload, failed = self._invoke(function, event)
                if not failed:
                    return
            self.failures.append(f"{function}: {payload}")
        except Exception:
            if not self._stopped.is_set():
                self.failures.append(traceback.format_exc())
        finally:
            with self._lock:
                self.under_way -= 1


def matches(pattern: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Whether an event pattern admits the event.

    Every field of the pattern must be in the event and have one of the values listed; of an array
    in the event one element is enough. Of the operators only `prefix` is here; the others raise
    NotImplementedError. Source: EventBridge User Guide, "Creating Amazon EventBridge event
    patterns" and "Comparison operators for use in event patterns".
    """
    return all(
        isinstance(event.get(key), dict) and matches(wanted, event[key])
        if isinstance(wanted, Mapping)
        else key in event and any(_is(one, event[key]) for one in wanted)
        for key, wanted in checked(pattern).items()
    )


def checked(pattern: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pattern, if all of it can be evaluated here; raises ValueError where EventBridge refuses
    it."""
    for key, wanted in pattern.items():
        if key.startswith("$"):
            raise NotImplementedError(f"local/events.py matches no {key}")
        if isinstance(wanted, Mapping):
            checked(wanted)
        elif not isinstance(wanted, list) or not wanted:
            raise ValueError(f"{key} of an event pattern is no list of values: {wanted!r}")
        else:
            for one in wanted:
                if isinstance(one, Mapping) and not _is_prefix(one):
                    raise NotImplementedError(f"local/events.py matches no {dict(one)}")
    return pattern


def _is_prefix(one: Mapping[str, Any]) -> bool:
    return one.keys() == {"prefix"} and isinstance(one["prefix"], str)


def _is(wanted: Any, value: Any) -> bool:
    if isinstance(value, list):
        return any(_is(wanted, element) for element in value)
    if isinstance(wanted, Mapping):
        return isinstance(value, str) and value.startswith(wanted["prefix"])
    # JSON's true is no 1.
    return type(value) is type(wanted) and bool(value == wanted)


def rate(expression: str) -> int:
    """Seconds of a `rate(…)`; raises ValueError where EventBridge refuses it.

    Source: EventBridge User Guide, "Rate expressions reference": the unit is singular for 1 only.
    """
    found = re.fullmatch(r"rate\(([1-9]\d*) (minute|hour|day)(s?)\)", expression)
    if not found or (found[1] == "1") == bool(found[3]):
        raise ValueError(f"local/events.py reads no schedule {expression!r}")
    return int(found[1]) * {"minute": 60, "hour": 3600, "day": 86400}[found[2]]


def install_parameter_changes(patches: Patches, bus: EventBus) -> None:
    """Let the parameter store tell the bus what is put into it."""
    original = SimpleSystemManagerBackend.put_parameter

    def put_parameter(self: Any, name: str, description: str, *args: Any, **kwargs: Any) -> Any:
        parameter = original(self, name, description, *args, **kwargs)
        operation = "Create" if parameter.version == 1 else "Update"
        bus.parameter_put(name, operation, description or "", parameter.parameter_type)
        return parameter

    patches.replace(SimpleSystemManagerBackend, "put_parameter", put_parameter)


def install_redrive_policy(patches: Patches, faults: Faults) -> None:
    """Let SNS send what it cannot deliver to a queue to the subscription's dead-letter queue."""
    original = Subscription.publish

    def publish(self: Any, message: str, *args: Any, **kwargs: Any) -> None:
        kind = faults.strike("sns:Deliver", "sns", message_id_in(message))
        if kind == DUPLICATE:
            original(self, message, *args, **kwargs)
        if kind != LOST:
            original(self, message, *args, **kwargs)
            return
        policy = json.loads(self.attributes.get("RedrivePolicy", "{}"))
        if policy:
            # With raw delivery the letter is the raw message.
            queue = policy["deadLetterTargetArn"].rsplit(":", 1)[-1]
            sqs_backends[ACCOUNT][REGION].send_message(queue, message)

    patches.replace(Subscription, "publish", publish)
