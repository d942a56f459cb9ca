"""`sesmail replay`: send a stored email through the workflow once more."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from botocore.exceptions import ClientError
from ses_mail import headers, outcomes, routing
from ses_mail.addresses import is_address, mailbox
from ses_mail.notification import Notification
from ses_mail.route_table import route
from ses_mail.routing import Delivery

from .. import emails, refusals, replay_plan, tokens, verdicts
from ..emails import Email, Stored
from ..errors import CheckFailedError, InvalidInputError, NotFoundError
from ..hints import hint
from ..output import confirm, say, show_json, show_table, show_text
from ..replay_plan import Asked
from ..session import INPUT_QUEUE, Session
from ..tokens import Tokens
from ..whereabouts import stale

_PAUSE = 1.0  # seconds between two looks at an execution


@dataclass(frozen=True)
class Part:
    """One message to send: a notification of SES, and whom of its recipients it is for."""

    original: Notification
    recipients: list[str]


def replay(
    context: typer.Context,
    message_id: Annotated[
        str, typer.Argument(help="SES's message id, or an execution's name or ARN.")
    ],
    recipient: Annotated[
        list[str] | None,
        typer.Option("--recipient", help="Only for this envelope recipient; may be repeated."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Deliver into this mailbox, whatever the rules say.")
    ] = None,
    ignore_verdicts: Annotated[
        bool, typer.Option("--ignore-verdicts", help="Deliver although SES found virus or spam.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Once more what was delivered or bounced already.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Send a stored email through the workflow once more, under the rules that hold now.

    Says what will happen and asks. Nothing is delivered twice unless --force says so; a bounce too
    goes out only within 24 hours of the email's arrival.

    Example: sesmail replay o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1 --ignore-verdicts
    """
    session: Session = context.obj
    if to is not None and not is_address(to):
        raise InvalidInputError(f"--to {to!r} is not an address")
    email = emails.look_up(session, message_id)
    stored = _stored(session, email)
    asked = Asked(
        attempt=email.attempt + 1,
        ignore_verdicts=ignore_verdicts,
        force=uuid.uuid4().hex[:12] if force else "",
        to=mailbox(to) if to else "",
    )
    parts = _parts(session, email, stored, asked, recipient or [])
    plan = _plan(session, email, parts, asked)
    if not session.as_json:
        _show(email, stored, plan)
    for letter in stale(email):
        say(f"A letter of this email stays in {letter.queue}: discard or redrive it afterwards.")
    confirm(_question(email, parts), yes)
    names = _send(session, parts, asked)
    ends = _follow(session, email, names) if wait else {}
    if session.as_json:
        answer = {
            "message_id": email.message_id,
            "executions": names,
            "plan": [{**vars(delivery), "effect": effect} for delivery, effect in plan],
        }
        show_json(answer | ({"ends": ends} if wait else {}))
    else:
        for name in names:
            show_text(f"Execution {name} {ends.get(name, 'starts in a moment')}")
    if any(end not in ("SUCCEEDED", "queued") for end in ends.values()):
        raise CheckFailedError(f"Not all went well: {hint('trace', email.message_id)}")


def _stored(session: Session, email: Email) -> Stored:
    if not email.is_known:
        seen = hint("trace", email.message_id)
        raise NotFoundError(f"Nothing is known of {email.message_id}: see {seen}")
    if not email.stored:
        raise NotFoundError(
            f"The email {email.message_id} is gone from {session.bucket}: it cannot be replayed"
        )
    return email.stored


def _parts(
    session: Session, email: Email, stored: Stored, asked: Asked, recipients: Sequence[str]
) -> list[Part]:
    fields = emails.headers_of(session, stored)
    originals = replay_plan.originals(email)
    if not originals and not recipients:
        raise InvalidInputError(
            "No execution knows the email's envelope any more (they are kept for 90 days): say for "
            "whom it is with --recipient"
        )
    if not originals:
        say("No execution knows the envelope any more: the recipients are taken as you give them.")
        originals = [replay_plan.from_stored(email.message_id, stored, fields, recipients)]
    chosen = replay_plan.select(originals, recipients)
    receipts = [original.receipt for original, _ in chosen]
    replay_plan.refuse_useless(receipts, headers.received_count(fields), asked)
    return [Part(original, whom) for original, whom in chosen]


def _plan(
    session: Session, email: Email, parts: Sequence[Part], asked: Asked
) -> list[tuple[Delivery, str]]:
    """What the router will decide, and what comes of each delivery."""
    known = _tokens(session)
    return [
        (delivery, replay_plan.effect(email, part.original, delivery, asked, known))
        for part in parts
        for delivery in routing.group(
            route(session.dynamodb, session.routing_table, part.recipients, outcomes.SAFE, asked.to)
        )
    ]


def _tokens(session: Session) -> Tokens | None:
    try:
        return tokens.existing(session)
    except ClientError as error:
        if not refusals.is_denied(error):
            raise
        return None


def _show(email: Email, stored: Stored, plan: Sequence[tuple[Delivery, str]]) -> None:
    show_text(f"Email {email.message_id}, {stored.size} bytes")
    show_table(
        ("recipients", "rule", "action", "target", "what will happen"),
        [(d.recipients, d.matched_rule, d.action, d.target, effect) for d, effect in plan],
        folding=("recipients", "what will happen"),
    )


def _question(email: Email, parts: Sequence[Part]) -> str:
    virus = any(verdicts.is_virus(part.original.receipt) for part in parts)
    warning = "SES found a virus in this email, and it will be delivered with it. " if virus else ""
    return f"{warning}Replay {email.message_id}?"


def _send(session: Session, parts: Sequence[Part], asked: Asked) -> list[str]:
    """The names of the executions that will start."""
    names: list[str] = []
    for part in parts:
        message = asked.message(part.original, part.recipients)
        session.sqs.send_message(
            QueueUrl=session.queue_url(INPUT_QUEUE), MessageBody=message.execution_input()
        )
        names += message.execution_names()
    return names


def _follow(session: Session, email: Email, names: Sequence[str]) -> dict[str, str]:
    """How each execution ended; `queued` if the pipe is stopped."""
    if email.pipe_state == "STOPPED":
        say(f"The pipe is stopped: it waits in the input queue. Start it: {hint('resume')}")
        return dict.fromkeys(names, "queued")
    say("Following it; Ctrl-C ends only this.")
    return {name: _end_of(session, name) for name in names}


def _end_of(session: Session, name: str) -> str:
    while True:
        try:
            execution = session.stepfunctions.describe_execution(
                executionArn=session.execution_arn(name)
            )
        except session.stepfunctions.exceptions.ExecutionDoesNotExist:
            pass  # not started yet
        else:
            if execution["status"] != "RUNNING":
                return execution["status"]
        time.sleep(_PAUSE)
