"""Turning what lies in the input queue into one execution per email and set of recipients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ses_mail import clock, dead_letters, notification, outcomes
from ses_mail.errors import InvalidNotificationError
from ses_mail.notification import Notification

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_stepfunctions import SFNClient


@dataclass(frozen=True)
class Started:
    """What became of a message: `started`, `duplicate`, `ignored` or `parked`.

    reason is the error's text. `started` may be a duplicate of an execution that still runs:
    StartExecution answers both alike, with the execution's own start (AWS, API reference of
    StartExecution).
    """

    result: str
    message_id: str = ""
    execution_arn: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Starter:
    """Starts executions of one state machine and parks what is not a notification.

    identified is told the message id before anything is done with an email that may fail.
    """

    stepfunctions: "SFNClient"
    sqs: "SQSClient"
    state_machine_arn: str
    input_dlq_url: str
    identified: Callable[[str], None]

    def start(self, body: str) -> Started:
        """Handle one message; any exception means that it must come again."""
        try:
            email = notification.parse(body)
        except InvalidNotificationError as error:
            # Behind a Pipe a failed item would be received a hundred times and then reach the
            # DLQ without a reason.
            self._park(body, error)
            return Started(outcomes.PARKED, reason=str(error))
        self.identified(email.message_id)
        if email.is_setup:
            return Started(outcomes.IGNORED, email.message_id)
        for name in email.execution_names():
            result = self._start(email, name)
            if result:
                return Started(result, email.message_id, self._arn(name))
        raise RuntimeError(f"every execution name of {email.message_id} is taken by other input")

    def _start(self, email: Notification, name: str) -> str | None:
        """`started`, `duplicate`, or None if the name belongs to other recipients."""
        try:
            self.stepfunctions.start_execution(
                stateMachineArn=self.state_machine_arn, name=name, input=email.execution_input()
            )
        except self.stepfunctions.exceptions.ExecutionAlreadyExists:
            # DescribeExecution lags: ExecutionDoesNotExist right now fails this item, which
            # comes again.
            existing = self.stepfunctions.describe_execution(executionArn=self._arn(name))
            return outcomes.DUPLICATE if email.same_delivery(existing["input"]) else None
        return outcomes.STARTED

    def _arn(self, name: str) -> str:
        return f"{self.state_machine_arn.replace(':stateMachine:', ':execution:')}:{name}"

    def _park(self, body: str, error: InvalidNotificationError) -> None:
        message = dead_letters.parked_message(
            body,
            {"action": "start", "error": error.code, "cause": str(error), "at": clock.iso()},
        )
        # The original fits, since it came out of a queue; escaped in JSON it may not any more.
        dead_letters.park(self.sqs, self.input_dlq_url, message, instead=body)
