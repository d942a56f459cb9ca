"""Parking what executions left behind that died where no Catch reaches.

States.Runtime, States.DataLimitExceeded, time-outs and aborts cannot be caught inside. An execution
that caught its failures itself has left the mark `PARKED#{execution name}` in the deliveries table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ses_mail import clock, dead_letters, delivery_keys, notification, tables
from ses_mail.errors import InvalidNotificationError, printable
from ses_mail.payloads import DeadLetter, Failure, ParkedMessage

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_stepfunctions import SFNClient
    from mypy_boto3_stepfunctions.literals import ExecutionStatusType

DEAD: tuple["ExecutionStatusType", ...] = ("FAILED", "TIMED_OUT", "ABORTED")
# The hourly run looks at what stopped in this time; lists and events lag.
HOURS = 3.0
_HOUR, _DAY = 3600, 24 * 3600
# After 90 days Step Functions forgets an execution, and nobody asks for its mark any more.
_MARK_DAYS = 91


class StillRunningError(Exception):
    """DescribeExecution lags behind the event that the execution stopped; asked again later."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """One execution whose email was parked; error is the execution's, or its status."""

    message_id: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Sweeper:
    """Looks at the dead executions of one state machine."""

    stepfunctions: "SFNClient"
    dynamodb: "DynamoDBClient"
    sqs: "SQSClient"
    state_machine_arn: str
    table: str
    input_dlq_url: str

    def recently_dead(self, hours: float = HOURS) -> list[str]:
        """ARNs of executions that stopped in the last hours, however long ago they started.

        The list is ordered by start, and an execution may run for days: all of it is read.
        """
        since = clock.now() - hours * _HOUR
        paginator = self.stepfunctions.get_paginator("list_executions")
        return [
            execution["executionArn"]
            for status in DEAD
            for page in paginator.paginate(
                stateMachineArn=self.state_machine_arn,
                statusFilter=status,
                PaginationConfig={"PageSize": 1000},
            )
            for execution in page["executions"]
            if execution["stopDate"].timestamp() > since
        ]

    def sweep(self, arn: str) -> Swept | None:
        """Park the email of an execution; None if it did not die, or has parked it itself."""
        execution = self.stepfunctions.describe_execution(executionArn=arn)
        if execution["status"] == "RUNNING":
            raise StillRunningError(f"{arn} is still said to run")
        if execution["status"] not in DEAD:
            return None
        name = execution["name"]
        error = execution.get("error") or execution["status"]
        failure: Failure = {
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
        return Swept(message_id=message_id, error=error)

    def unmarked(self, arns: Sequence[str]) -> list[str]:
        """Those of the executions whose names and emails have no mark."""
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


def _letter(execution_input: str, failure: Failure) -> tuple[DeadLetter | ParkedMessage, str]:
    """(dead letter, message id) for an execution's input; the id is empty if it is not an email."""
    try:
        email = notification.parse(execution_input)
    except InvalidNotificationError:
        return dead_letters.parked_message(execution_input, failure), ""
    return dead_letters.letter(*email, failure), email.message_id
