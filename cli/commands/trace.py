"""`sesmail trace`: what became of one email, and where it is now.

From and Subject are shown to the operator; nothing logs them.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from ses_mail.errors import printable
from ses_mail.headers import Headers

from .. import emails, verdicts
from ..emails import Email
from ..errors import NotFoundError
from ..history import Delivery, Story
from ..output import iso, say, show_fields, show_json, show_table, show_text, when
from ..session import Session
from ..texts import shown
from ..whereabouts import Place, places, stale


def trace(
    context: typer.Context,
    message_id: Annotated[
        str, typer.Argument(help="SES's message id, or an execution's name or ARN.")
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Every event, attempt and record too.")
    ] = False,
    pages: Annotated[
        int, typer.Option(min=1, help="Pages of 1,000 executions to read back at most.")
    ] = 20,
) -> None:
    """Say what became of an email: where it is now, what SES found, and its executions.

    Changes nothing. Letters that it finds are shown to others again at once. What is newest comes
    last.

    Example: sesmail trace o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1
    """
    session: Session = context.obj
    email = emails.look_up(session, message_id, pages)
    if not email.is_known:
        raise NotFoundError(
            f"Nothing is known of {email.message_id} in {session.environment}, region "
            f"{session.region_name}, account {session.account}. Looked at: its execution (they are "
            "kept for 90 days), the deliveries table, the three dead-letter queues, and "
            f"s3://{session.bucket}/{emails.PREFIX}{email.message_id}."
        )
    found = places(email, lambda arn: emails.definition_of(session, arn))
    fields = emails.headers_of(session, email.stored)
    if session.as_json:
        show_json(_document(email, found, fields))
    else:
        _show(email, found, fields)
        for story in email.stories:
            _show_execution(story, verbose)
        if verbose:
            _show_records(email)
    if email.listed_since:
        say(
            f"Executions that started before {when(email.listed_since)} "
            "were not searched for redrives that left no record: raise --pages."
        )


def _show(email: Email, found: list[Place], fields: Headers) -> None:
    show_text(f"Email {email.message_id}")
    for place in found:
        whom = f"{', '.join(place.recipients)}: " if place.recipients else ""
        show_text(f"  {printable(whom)}{place.text}")
    for letter in stale(email):
        show_text(
            f"  A letter of an earlier attempt still waits in {letter.queue}: it may be redriven, "
            "which delivers nothing twice, or discarded."
        )
    stored = email.stored
    show_fields(
        {
            "from": shown(fields, "from"),
            "subject": shown(fields, "subject"),
            "size": f"{stored.size} bytes" if stored else "the object is gone",
            "SES says": verdicts.in_words(email.receipt),
            **({"spam, because": why} if (why := verdicts.why_spam(email.receipt)) else {}),
            "stored": f"s3://{stored.bucket}/{stored.key}" if stored else "no",
            "expires": (when(stored.expires) or "S3 does not say") if stored else "",
        }
    )


def _show_execution(story: Story, verbose: bool) -> None:
    show_text("")
    show_fields(
        {
            "execution": story.name,
            "status": " ".join(filter(None, (story.status, story.error))),
            "started": when(story.started),
            "stopped": when(story.stopped),
            **({"redrive": _redrive(story)} if story.redrive else {}),
        }
    )
    if verbose:
        show_table(
            ("at", "delivery", "state", "event"),
            [
                (when(s.at), "" if s.iteration is None else s.iteration + 1, s.state, s.what)
                for s in story.steps
            ],
            folding=("event",),
        )
        show_table(
            ("failed at", "state", "error", "cause"),
            [
                (when(attempt.ended), task.state, attempt.error, attempt.cause)
                for task in story.tasks
                for attempt in task.attempts
                if attempt.error
            ],
            empty="No attempt failed.",
            folding=("cause",),
        )
    show_table(
        ("delivery", "recipients", "rule", "reason", "action", "target", "attempts", "outcome"),
        [
            (
                number,
                d.recipients,
                d.matched_rule,
                d.reason,
                d.action,
                d.target,
                _attempts(d),
                " ".join(filter(None, (d.outcome, d.error, d.why, d.result_id))),
            )
            for number, d in enumerate(story.deliveries, 1)
        ],
        empty="No delivery yet.",
        folding=("recipients", "rule", "reason", "outcome"),
    )


def _show_records(email: Email) -> None:
    if not email.records:
        return
    show_text("")
    show_table(
        ("record", "state", "updated", "result"),
        [
            (key, r.get("delivery_state"), when(r.get("updated_at")), r.get("result_id"))
            for key, r in email.records.items()
        ],
    )


def _document(email: Email, found: list[Place], fields: Headers) -> dict[str, Any]:
    stored = email.stored
    return {
        "message_id": email.message_id,
        "from": ", ".join(shown(fields, "from")),
        "subject": ", ".join(shown(fields, "subject")),
        "size": stored.size if stored else None,
        "verdicts": verdicts.of(email.receipt),
        "dmarc_policy": email.receipt.get("dmarcPolicy"),
        "why_spam": verdicts.why_spam(email.receipt) or None,
        "where": [{"state": p.state, "recipients": p.recipients, "text": p.text} for p in found],
        "executions": [
            {
                "name": story.name,
                "arn": story.arn,
                "status": story.status,
                "error": story.error,
                "started": iso(story.started),
                "stopped": iso(story.stopped),
                "redrive": story.redrive,
                "verdict": story.verdict,
                "recipients": story.recipients,
                "deliveries": [_delivery(delivery) for delivery in story.deliveries],
                "tasks": [
                    {
                        "state": task.state,
                        "delivery": task.iteration,
                        "attempts": [
                            {**vars(a), "started": iso(a.started), "ended": iso(a.ended)}
                            for a in task.attempts
                        ],
                    }
                    for task in story.tasks
                ],
                "states": [s.state for s in story.steps if s.state],
            }
            for story in email.stories
        ],
        "dead_letters": [letter.as_json() for letter in email.letters],
        "queued": [letter.as_json() for letter in email.queued],
        "records": [{"delivery": key, **record} for key, record in email.records.items()],
        "stored": {
            "bucket": stored.bucket,
            "key": stored.key,
            "size": stored.size,
            "since": iso(stored.since),
            "expires": iso(stored.expires),
        }
        if stored
        else None,
        "listed_since": iso(email.listed_since),
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    told = {name: value for name, value in vars(delivery).items() if name != "tasks"}
    return {**told, "at": iso(delivery.at), "attempts": _attempts(delivery)}


def _attempts(delivery: Delivery) -> int:
    return max((len(t.attempts) for t in delivery.tasks if "Park" not in t.state), default=0)


def _redrive(story: Story) -> str:
    return ", ".join(f"{name} {value}" for name, value in story.redrive.items())
