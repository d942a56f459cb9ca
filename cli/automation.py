"""Running a document of Systems Manager to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from .errors import CommandError
from .session import Session

_RUNNING = ("Pending", "InProgress", "Waiting", "Cancelling")
_PAUSE = 1.0  # seconds between two looks


def run(
    session: Session,
    document: str,
    parameters: Mapping[str, str],
    follow: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """The document's outputs under their names without the step's; follow is called at each look.

    Interrupted, it cancels the automation. Raises CommandError with the reason if that fails.
    """
    identifier = session.ssm.start_automation_execution(
        DocumentName=document, Parameters={name: [value] for name, value in parameters.items()}
    )["AutomationExecutionId"]
    try:
        while True:
            execution = session.ssm.get_automation_execution(AutomationExecutionId=identifier)[
                "AutomationExecution"
            ]
            follow()
            if execution["AutomationExecutionStatus"] not in _RUNNING:
                break
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        # It may just have ended.
        with suppress(session.ssm.exceptions.InvalidAutomationStatusUpdateException):
            session.ssm.stop_automation_execution(AutomationExecutionId=identifier, Type="Cancel")
        raise
    if execution["AutomationExecutionStatus"] != "Success":
        raise CommandError(
            f"{document} ended as {execution['AutomationExecutionStatus']}: "
            f"{execution.get('FailureMessage', 'no reason given')} (automation {identifier})"
        )
    outputs = execution.get("Outputs", {})
    return {name.rpartition(".")[2]: values[0] for name, values in outputs.items() if values}
