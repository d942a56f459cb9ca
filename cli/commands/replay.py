"""`sesmail replay`: send a stored email through the workflow once more."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from ses_mail import delivery_keys, headers, notification, outcomes, routing, stored_email
from ses_mail.addresses import canonical, is_address, mailbox
from ses_mail.bounce_policy import MAX_RECEIVED
from ses_mail.errors import InvalidNotificationError
from ses_mail.notification import Notification
from ses_mail.route import route
from ses_mail.routing import Delivery

from .. import emails
from ..emails import Email, Stored
from ..errors import CheckFailedError, InvalidInputError, NotFoundError
from ..output import confirm, console, say, show_json, show_table
from ..session import INPUT_QUEUE, Session
from ..whereabouts import stale

_PAUSE = 1.0  # seconds between two looks at an execution


@dataclass(frozen=True)
class Asked:
    """What the operator wants of the new execution; force is a nonce, or empty."""

    attempt: int
    ignore_verdicts: bool
    force: str
    to: str

    def redrive(self, recipients: Sequence[str]) -> dict[str, Any]:
        """The field `redrive` of the notification."""
        wanted: dict[str, Any] = {"attempt": self.attempt, "recipients": list(recipients)}
        if self.ignore_verdicts:
            wanted["ignoreVerdicts"] = True
        if self.force:
            wanted["force"] = self.force
        if self.to:
            wanted["to"] = self.to
        return wanted


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
    """Send a stored email through the workflow once more, with the rules of now.

    Says what will happen and asks. Nothing is delivered twice unless --force says so; a bounce too
    goes out only within 24 hours of the email's arrival.

    Example: sesmail replay o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1 --ignore-verdicts
    """
    session: Session = context.obj
    if to is not None and not is_address(to):
        raise InvalidInputError(f"--to {to!r} is not an address")
    email = emails.look_up(session, message_id)
    if not email.is_known:
        raise NotFoundError(f"Nothing is known of {email.message_id}: see sesmail trace")
    if not email.stored:
        raise NotFoundError(
            f"The email {email.message_id} is gone from {session.bucket}: it cannot be replayed"
        )
    _, fields = stored_email.find(session.s3, email.stored.bucket, email.stored.key)
    originals = _originals(email, email.stored, fields, recipient or [])
    asked = Asked(
        email.attempt + 1,
        ignore_verdicts,
        uuid.uuid4().hex[:12] if force else "",
        mailbox(to) if to else "",
    )
    chosen = select(originals, recipient or [])
    refuse_useless([original for original, _ in chosen], headers.received_count(fields), asked)
    messages = [_message(original, asked, whom) for original, whom in chosen]
    plan = [
        delivery
        for original, whom in chosen
        for delivery in routing.group(
            route(session.dynamodb, session.routing_table, whom, outcomes.SAFE, asked.to)
        )
    ]
    effects = [_effect(email, delivery, asked, original=chosen[0][0]) for delivery in plan]
    if not session.as_json:
        console().print(f"Email {email.message_id}, {email.stored.size} bytes", markup=False)
        show_table(
            ("recipients", "rule", "action", "target", "what will happen"),
            [
                (d.recipients, d.matched_rule, d.action, d.target, effect)
                for d, effect in zip(plan, effects, strict=True)
            ],
        )
    for letter in stale(email):
        say(f"A letter of this email stays in {letter.queue}: discard or redrive it afterwards.")
    confirm(f"Replay {email.message_id}?", yes)
    names = []
    for message in messages:
        session.sqs.send_message(
            QueueUrl=session.queue_url(INPUT_QUEUE), MessageBody=message.execution_input()
        )
        names += message.execution_names()
    ends = _follow(session, email, names) if wait else {}
    answer = {
        "message_id": email.message_id,
        "executions": names,
        "plan": [
            {**vars(delivery), "effect": effect}
            for delivery, effect in zip(plan, effects, strict=True)
        ],
        **({"ends": ends} if wait else {}),
    }
    if session.as_json:
        show_json(answer)
    else:
        for name in names:
            console().print(
                f"Execution {name} {ends.get(name, 'starts in a moment')}", markup=False
            )
    if any(end not in ("SUCCEEDED", "queued") for end in ends.values()):
        raise CheckFailedError(f"Not all went well: sesmail trace {email.message_id}")


def _originals(
    email: Email, stored: Stored, fields: headers.Headers, recipients: Sequence[str]
) -> list[Notification]:
    """SES's notifications of the email, one per receipt rule that matched."""
    inputs = [json.dumps(story.input) for story in email.stories]
    bodies = [letter.text for letter in (*email.letters, *email.queued)]
    found: dict[str, Notification] = {}
    for body in inputs + bodies:
        try:
            parsed = notification.parse(body)
        except InvalidNotificationError:
            continue
        if parsed.is_setup:
            continue
        key = json.dumps(sorted(map(canonical, parsed.receipt["recipients"])))
        found.setdefault(key, parsed)
    if found:
        return list(found.values())
    if not recipients:
        raise InvalidInputError(
            "No execution knows the email's envelope any more (they are kept for 90 days): say for "
            "whom it is with --recipient"
        )
    say("No execution knows the envelope any more: the recipients are taken as you give them.")
    return [_from_stored(email.message_id, stored, fields, recipients)]


def _from_stored(
    message_id: str, stored: Stored, fields: headers.Headers, recipients: Sequence[str]
) -> Notification:
    # SES puts its own headers on top, so the first of a name is its.
    verdicts = {
        f"{kind}Verdict": {"status": values[0].strip().upper()}
        for kind in ("spam", "virus")
        if (values := headers.values(fields, f"x-ses-{kind}-verdict"))
    }
    body = {
        # Without an envelope sender nothing is ever bounced, which it is far too late for.
        "mail": {"messageId": message_id, "timestamp": stored.since.isoformat()},
        "receipt": {
            "recipients": list(recipients),
            "action": {
                "type": "S3",
                "bucketName": stored.bucket,
                "objectKey": stored.key,
            },
            **verdicts,
        },
    }
    try:
        return notification.parse(body)
    except InvalidNotificationError as error:
        raise InvalidInputError(str(error)) from None


def select(
    originals: Sequence[Notification], recipients: Sequence[str]
) -> list[tuple[Notification, list[str]]]:
    """Which notification serves which recipients; all of them if none are named.

    Raises InvalidInputError for somebody who did not get the email.
    """
    wanted = {canonical(recipient) for recipient in recipients}
    everyone: set[str] = set()
    chosen: list[tuple[Notification, list[str]]] = []
    for original in originals:
        known = original.receipt["recipients"]
        mine = [
            r
            for r in known
            if canonical(r) not in everyone and (not wanted or canonical(r) in wanted)
        ]
        everyone.update(map(canonical, known))
        if mine:
            chosen.append((original, mine))
    if strangers := sorted(wanted - everyone):
        raise InvalidInputError(
            f"{', '.join(strangers)} did not get this email; its recipients are "
            f"{', '.join(sorted(everyone))}"
        )
    return chosen


def refuse_useless(originals: Sequence[Notification], received: int, asked: Asked) -> None:
    """Raise InvalidInputError if the workflow would only drop or store the email again."""
    virus = any(o.receipt.get("virusVerdict", {}).get("status") == "FAIL" for o in originals)
    if virus and not asked.ignore_verdicts:
        raise InvalidInputError(
            "SES found a virus: replayed like this the email would only be dropped again. To "
            "deliver it nevertheless, add --ignore-verdicts"
        )
    if received > MAX_RECEIVED:
        raise InvalidInputError(
            f"The email went through {received} servers, which is a loop: the workflow would only "
            "store it again. Take it from the bucket"
        )


def _message(original: Notification, asked: Asked, recipients: Sequence[str]) -> Notification:
    return notification.parse(
        {
            "mail": original.mail,
            "receipt": original.receipt,
            "redrive": asked.redrive(recipients),
        }
    )


def _effect(email: Email, delivery: Delivery, asked: Asked, original: Notification) -> str:
    """One delivery's future in words."""
    message_id, force = email.message_id, asked.force
    if delivery.action == routing.FORWARD:
        key = delivery_keys.forward(message_id, delivery.target, force)
        record = email.records.get(key["SK"], {})
        if record.get("delivery_state") == "delivered":
            return "already delivered: nothing will be sent again without --force"
        again = " once more" if force else ""
        spam = _is_spam(original.receipt) and not asked.ignore_verdicts
        return f"is delivered{again}{' into the spam folder' if spam else ''}"
    if delivery.action == routing.BOUNCE:
        keys = [delivery_keys.bounce(message_id, r, force) for r in delivery.recipients]
        ended = [email.records.get(key["SK"], {}) for key in keys]
        states = {str(record.get("delivery_state")) for record in ended if record}
        if len(ended) == sum(map(bool, ended)) and states <= {"bounced", "suppressed"}:
            return f"already {' or '.join(sorted(states))}: nothing will be sent without --force"
        return "is bounced, if that hurts nobody and the email is younger than 24 h"
    if delivery.action == routing.PARK:
        return f"goes to the input dead-letter queue: {delivery.reason}"
    return {routing.STORE: "stays stored", routing.DROP: "is dropped"}[delivery.action]


def _is_spam(receipt: Mapping[str, Any]) -> bool:
    """As `Safe to deliver?` of the state machine decides."""
    status = {name: receipt.get(f"{name}Verdict", {}).get("status") for name in ("spam", "dmarc")}
    strict = receipt.get("dmarcPolicy") in ("quarantine", "reject")
    return status["spam"] == "FAIL" or (status["dmarc"] == "FAIL" and strict)


def _follow(session: Session, email: Email, names: Sequence[str]) -> dict[str, str]:
    """How each execution ended; `queued` if the pipe is stopped."""
    if email.pipe_state == "STOPPED":
        say("The pipe is stopped: it waits in the input queue. sesmail resume starts it.")
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
