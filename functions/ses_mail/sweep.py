"""Parking what executions left behind that died where no Catch reaches.

States.Runtime, States.DataLimitExceeded, time-outs and aborts cannot be caught inside. An execution
that caught its failures itself has left the mark `PARKED#{execution name}` in the deliveries table.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ses_mail import clock, dead_letters, delivery_keys, notification, tables
from ses_mail.errors import InvalidNotificationError, printable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_stepfunctions import SFNClient
    from mypy_boto3_stepfunctions.literals import ExecutionStatusType

DEAD: tuple["ExecutionStatusType", ...] = ("FAILED", "TIMED_OUT", "ABORTED")
# The hourly run looks at what stopped in this time; lists and events lag.
_WINDOW = 3 * 3600
# An execution lives at most about two days: retries of 44.8 h, and waits for leases.
_LONGEST_RUN = 3 * 24 * 3600
_DAY = 24 * 3600
# After 90 days Step Functions forgets an execution, and nobody asks for its mark any more.
_MARK_DAYS = 91


class StillRunningError(Exception):
    """DescribeExecution lags behind the event that the execution stopped; asked again later."""


@dataclass(frozen=True)
class Swept:
    """One execution whose email was parked; error is the execution's, or its status."""

    message_id: str
    execution_arn: str
    error: str


@dataclass(frozen=True)
class Sweeper:
    """Looks at the dead executions of one state machine."""

    stepfunctions: "SFNClient"
    dynamodb: "DynamoDBClient"
    sqs: "SQSClient"
    state_machine_arn: str
    table: str
    input_dlq_url: str

    def recently_dead(self) -> list[str]:
        """ARNs of executions that died in the last 3 h, newest start first."""
        now = clock.now()
        return [
            execution["executionArn"]
            for status in DEAD
            for execution in self._list(status, now - _WINDOW - _LONGEST_RUN)
            if execution["stopDate"].timestamp() > now - _WINDOW
        ]

    def _list(self, status: "ExecutionStatusType", started_after: float) -> Iterator[Any]:
        pages = self.stepfunctions.get_paginator("list_executions").paginate(
            stateMachineArn=self.state_machine_arn, statusFilter=status
        )
        for page in pages:
            for execution in page["executions"]:
                if execution["startDate"].timestamp() < started_after:
                    return
                yield execution

    def sweep(
        self, execution_arns: Iterable[str], out_of_time: Callable[[], bool]
    ) -> Iterator[Swept | tuple[str, Exception]]:
        """Park every execution without a mark; a failure comes as (ARN, error) and the others go
        on. Stops early when out of time: the next hourly run goes on."""
        for arn in self._unmarked(list(execution_arns)):
            if out_of_time():
                return
            try:
                swept = self._sweep_one(arn)
            except Exception as error:
                yield arn, error
            else:
                if swept:
                    yield swept

    def _sweep_one(self, arn: str) -> Swept | None:
        execution = self.stepfunctions.describe_execution(executionArn=arn)
        if execution["status"] == "RUNNING":
            raise StillRunningError(f"{arn} is still said to run")
        if execution["status"] not in DEAD:
            return None
        name = execution["name"]
        error = execution.get("error") or execution["status"]
        failure = {
            "action": "execution",
            "target": "",
            "matchedRule": "",
            "error": re.sub(r"[^\w.-]", "_", error)[:256],
            "cause": printable(execution.get("cause", "")),
            "executionArn": arn,
            "at": clock.iso(),
        }
        letter, message_id = _letter(execution["input"], failure)
        if (
            message_id
            and message_id != notification.message_id_of(name)
            and self._marked({(message_id, name)})
        ):
            return None
        dead_letters.park(self.sqs, self.input_dlq_url, letter, instead=execution["input"])
        self._mark(message_id or notification.message_id_of(name), name)
        return Swept(message_id, arn, error)

    def _unmarked(self, arns: list[str]) -> list[str]:
        keys = {arn: (notification.message_id_of(_name(arn)), _name(arn)) for arn in arns}
        marked = self._marked(set(keys.values()))
        return [arn for arn in keys if keys[arn] not in marked]

    def _marked(self, keys: set[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of (message id, execution name) that have a mark."""
        wanted = [delivery_keys.parked(*key) for key in keys]
        items = tables.read_all(self.dynamodb, self.table, wanted)
        found = {(item["PK"], item["SK"]) for item in items}
        return {
            key for key, mark in zip(keys, wanted, strict=True) if (mark["PK"], mark["SK"]) in found
        }

    def _mark(self, message_id: str, name: str) -> None:
        self.dynamodb.put_item(
            TableName=self.table,
            Item=tables.serialize(
                {
                    **delivery_keys.parked(message_id, name),
                    "entity_type": "PARKED",
                    "updated_at": clock.iso(),
                    "expires_at": int(clock.now()) + _MARK_DAYS * _DAY,
                }
            ),
        )


def _name(arn: str) -> str:
    return arn.rpartition(":")[2]


def _letter(execution_input: str, failure: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(dead letter, message id) for an execution's input; the id is empty if it is no email."""
    try:
        email = notification.parse(execution_input)
    except InvalidNotificationError:
        return {"original": execution_input, "failure": failure}, ""
    old: Mapping[str, Any] = email.redrive or {}
    # Never the old name, which would be dropped as a duplicate; and always the explicit list.
    recipients = old.get("recipients", email.receipt.get("recipients", []))
    redrive = {**old, "attempt": old.get("attempt", 0) + 1, "recipients": recipients}
    letter = {
        **json.loads(email.execution_input()),
        "redrive": redrive,
        "failure": {**failure, "recipients": recipients},
    }
    return letter, email.message_id
