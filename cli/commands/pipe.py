"""`sesmail pause` and `sesmail resume`: stop and start the pipe behind the input queue."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from ..errors import CommandError
from ..output import confirm, show_fields, show_json
from ..session import INPUT_QUEUE, Session


def pause(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Stop the pipe: mail waits in the input queue, and keeps there for 10 days.

    Emails whose execution runs already go on.

    Example: sesmail pause --yes
    """
    session: Session = context.obj
    confirm(f"Stop {session.pipe}? Mail will wait in the input queue.", yes)
    state = session.pipes.describe_pipe(Name=session.pipe)["DesiredState"]
    if state != "STOPPED":
        session.pipes.stop_pipe(Name=session.pipe)
    _show(session, "STOPPED")


def resume(context: typer.Context) -> None:
    """Start the pipe again: what waited is processed, oldest first.

    Example: sesmail resume
    """
    session: Session = context.obj
    if session.pipes.describe_pipe(Name=session.pipe)["DesiredState"] != "RUNNING":
        session.pipes.start_pipe(Name=session.pipe)
    _show(session, "RUNNING")


def _show(session: Session, wanted: str) -> None:
    described = session.pipes.describe_pipe(Name=session.pipe)
    if described["DesiredState"] != wanted:
        raise CommandError(f"{session.pipe} should be {wanted}, but is {described['DesiredState']}")
    attributes = session.sqs.get_queue_attributes(
        QueueUrl=session.queue_url(INPUT_QUEUE),
        AttributeNames=["ApproximateNumberOfMessages", "MessageRetentionPeriod"],
    )["Attributes"]
    answer = {
        "pipe": session.pipe,
        "desired_state": wanted,
        "current_state": described["CurrentState"],
        "waiting": int(attributes["ApproximateNumberOfMessages"]),
    }
    if wanted == "STOPPED":
        # The first email that waits came when the pipe stopped, or later.
        keeps = timedelta(seconds=int(attributes["MessageRetentionPeriod"]))
        until = described["LastModifiedTime"] + keeps
        answer["mail_keeps_until"] = until
    show_json(answer) if session.as_json else show_fields(answer)
