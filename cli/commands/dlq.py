"""`sesmail dlq`: look at dead letters, send them back, or throw them away."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from ses_mail.errors import printable
from ses_mail.notification import message_id_of

from .. import automation
from ..errors import CheckFailedError, InvalidInputError, NotFoundError
from ..hints import hint
from ..letters import Dlq, Letter, held, peek
from ..output import (
    confirm,
    iso,
    progress,
    say,
    show_fields,
    show_json,
    show_table,
    show_text,
    when,
    written,
)
from ..session import INPUT_QUEUE, Session

QueueArgument = Annotated[Dlq, typer.Argument(help="Whose letters: input, forwarder or bouncer.")]
MessageOption = Annotated[
    str | None, typer.Option("--message-id", help="Only letters of this email.")
]
ErrorOption = Annotated[
    str | None, typer.Option("--error", help="Only letters of this error, as GmailTokenError.")
]

# In the summary of a run that was not done (runbooks/dlq_redrive.yaml).
_TIME_LIMIT = "stopped at the time limit"

dlq = typer.Typer(no_args_is_help=True, help="Dead letters: list, show, redrive, discard.")


@dlq.command("list")
def list_queues(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Letters to look at per queue.")] = 1000,
) -> None:
    """List the dead-letter queues: how many letters, since when, and because of what.

    Changes nothing. Letters are shown to others again at once; those that another reader holds
    count as in flight and are not looked into.

    Example: sesmail dlq list
    """
    session: Session = context.obj
    rows = [_summary(session, queue, limit) for queue in Dlq]
    if session.as_json:
        show_json(*rows)
        return
    show_table(
        ("queue", "name", "waiting", "in flight", "oldest", "errors"),
        [
            (
                row["queue"],
                row["name"],
                row["visible"],
                row["in_flight"],
                when(row["oldest"]),
                [f"{error} {count}" for error, count in row["errors"].items()],
            )
            for row in rows
        ],
        folding=("errors",),
    )


def _summary(session: Session, queue: Dlq, limit: int) -> dict[str, Any]:
    visible, in_flight = _counts(session, queue.queue)
    letters = peek(session, queue.queue, limit)
    return {
        "queue": queue.value,
        "name": f"{queue.queue}-{session.environment}",
        "visible": visible,
        "in_flight": in_flight,
        "looked_at": len(letters),
        "oldest": iso(letters[0].sent) if letters else None,
        "errors": dict(Counter(letter.error or "no reason" for letter in letters).most_common()),
    }


@dlq.command()
def show(
    context: typer.Context,
    queue: Annotated[Dlq | None, typer.Argument(help="One queue; all three if left out.")] = None,
    message_id: MessageOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Letters to show at most per queue.")] = 10,
) -> None:
    """Show dead letters: whose email, what failed and why, and since when.

    Changes nothing; the letters are shown to others again at once. With --json the whole letters.

    Example: sesmail dlq show forwarder --limit 3
    """
    session: Session = context.obj
    letters = [
        letter
        for one in ([queue] if queue else Dlq)
        for letter in _chosen(session, one, message_id, None, limit)
    ]
    if message_id and not letters:
        raise NotFoundError(f"No letter of {message_id} can be seen")
    if session.as_json:
        show_json(*(letter.as_json() for letter in letters))
        return
    for letter in letters:
        _show(letter)
    if not letters:
        say("No letter.")


def _chosen(
    session: Session, queue: Dlq, message_id: str | None, error: str | None, limit: int | None
) -> list[Letter]:
    # With a filter all have to be looked at.
    letters = peek(session, queue.queue, None if message_id or error else limit)
    return [x for x in letters if _fits(x, message_id, error)][:limit]


def _fits(letter: Letter, message_id: str | None, error: str | None) -> bool:
    return (message_id is None or letter.message_id == message_id_of(message_id)) and (
        error is None or letter.error == error
    )


def _show(letter: Letter) -> None:
    failure = letter.failure
    show_fields(
        {
            "queue": letter.queue,
            "email": letter.message_id or "unknown",
            "recipients": [printable(recipient) for recipient in letter.recipients],
            "failed": " ".join(
                map(str, filter(None, (failure.get("action"), failure.get("target"))))
            ),
            "rule": failure.get("matchedRule"),
            "error": letter.error or "none given (SNS or the pipe put it here)",
            "cause": printable(letter.cause),
            "when": when(failure.get("at") or letter.sent),
            "execution": failure.get("executionArn"),
        }
    )
    print()  # noqa: T201


@dlq.command()
def redrive(
    context: typer.Context,
    queue: QueueArgument,
    error: ErrorOption = None,
    message_id: MessageOption = None,
    most: Annotated[int, typer.Option("--max", min=0, help="Letters at most; 0 = all.")] = 0,
    velocity: Annotated[
        int, typer.Option(min=1, max=1000, help="Letters per second at most.")
    ] = 10,
) -> None:
    """Send dead letters back to the input queue, once their cause is fixed.

    Runs the document SESMail-DLQ-Redrive-{env}, again while its time limit ends it. Rules are
    looked up again, and what was delivered is not delivered again. Ends with 3 if no letter was
    found that fits, with 1 if one could not be sent.

    Example: sesmail dlq redrive forwarder --error GmailTokenError
    """
    session: Session = context.obj
    chosen = {
        "Error": error or "",
        "MessageId": message_id_of((message_id or "").rpartition(":")[2]),
    }
    answer = _redriven(session, queue, chosen, most, velocity)
    if not answer["redriven"] and not answer["failed"]:
        raise NotFoundError(_nothing_found(session, queue, chosen, answer))
    show_json(answer) if session.as_json else show_fields(answer)
    if answer["failed"]:
        say("What failed stays in the queue, as it was: SQS did not take it. Try again.")
        raise typer.Exit(CheckFailedError.exit_code)
    if answer["remaining"]:
        say(
            "What remains came in meanwhile (it may have failed again), is held by another reader, "
            "or was beyond this run."
        )


def _nothing_found(
    session: Session, queue: Dlq, chosen: Mapping[str, str], answer: Mapping[str, Any]
) -> str:
    wanted = " and ".join(f"{name} {value}" for name, value in chosen.items() if value)
    count = answer["filtered"]
    others = "1 other is there" if count == 1 else f"{count or 'no'} others are there"
    hidden = f", and {answer['remaining']} cannot be seen now" if answer["remaining"] else ""
    return (
        f"No letter{f' with {wanted}' if wanted else ''} is in "
        f"{queue.queue}-{session.environment}: {others}{hidden}. Nothing was redriven"
    )


def _redriven(
    session: Session, queue: Dlq, chosen: Mapping[str, str], most: int, velocity: int
) -> dict[str, Any]:
    """How many letters were sent back, refused by SQS, filtered out and left."""
    total = sum(_counts(session, queue.queue))
    done = failed = filtered = remaining = 0
    with progress(session.as_json) as bar:
        task = bar.add_task("Redriving", total=min(total, most) if most else total)

        def follow() -> None:
            bar.update(task, completed=total - sum(_counts(session, queue.queue)))

        while True:
            parameters = {
                "DLQUrl": session.queue_url(queue.queue),
                "SourceQueueUrl": session.queue_url(INPUT_QUEUE),
                "MaxMessages": str(most - done if most else 0),
                "VelocityPerSecond": str(velocity),
                **{name: value for name, value in chosen.items() if value},
            }
            outputs = automation.run(session, session.redrive_document, parameters, follow)
            moved = int(outputs["RedrivenCount"])
            done += moved
            failed, remaining = int(outputs["FailedCount"]), int(outputs["Remaining"])
            filtered = int(outputs["SkippedCount"])
            if most and done >= most:
                remaining = 0  # what was asked for is done
            # A run that came to the queue's end left only what failed again: sent back once more,
            # mail whose cause is not fixed would go in circles.
            if not (remaining and moved and _TIME_LIMIT in outputs["Summary"]):
                break
    return {
        "redriven": done,
        "failed": failed,
        "filtered": filtered,
        "remaining": remaining,
        "summary": outputs["Summary"],
    }


@dlq.command()
def discard(
    context: typer.Context,
    queue: QueueArgument,
    error: ErrorOption = None,
    message_id: MessageOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Where to keep what is discarded, as JSON Lines.",
            show_default="~/.local/state/sesmail/discarded-{queue}-{time}.jsonl",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete dead letters of one email (--message-id) or one error (--error), and keep a copy.

    The emails stay in the bucket and can be sent again: sesmail replay MESSAGE_ID. The letters are
    written to a file first.

    Example: sesmail dlq discard bouncer --error BounceRejectedError
    """
    session: Session = context.obj
    if not message_id and not error:
        raise InvalidInputError(
            "Say which letters: --message-id or --error. Nothing was discarded."
        )
    chosen = {x.id: x for x in _chosen(session, queue, message_id, error, None)}
    if not chosen:
        raise NotFoundError("No such letter can be seen; nothing was discarded")
    if not session.as_json:
        _list(list(chosen.values()))
    confirm(f"Discard {len(chosen)} letters of {queue.queue}-{session.environment}?", yes)
    path = save or _kept(queue)
    discarded: list[Letter] = []
    # Received again: while the question stood, a letter may have been redriven.
    with written(path, "a") as file, held(session, queue.queue) as (letters, delete):
        for letter in letters:
            if letter.id in chosen:
                # In this order: stopped between the two, there is a copy too many.
                file.write(json.dumps(letter.as_json()) + "\n")
                file.flush()
                delete(letter)
                discarded.append(letter)
    if session.as_json:
        show_json({"discarded": [x.as_json() for x in discarded], "saved": str(path)})
        return
    show_text(
        f"Discarded {len(discarded)} of {len(chosen)} letters, kept in {path}. Their emails stay "
        f"in the bucket; to send one again: {hint('replay', 'MESSAGE_ID')}"
    )


def _kept(queue: Dlq) -> Path:
    """Where no git looks: letters name people (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(
        state, "sesmail", f"discarded-{queue.value}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"
    )


def _list(letters: Sequence[Letter]) -> None:
    show_table(
        ("email", "recipients", "error", "since"),
        [
            (
                x.message_id,
                [printable(r) for r in x.recipients],
                x.error,
                when(x.sent),
            )
            for x in letters
        ],
        folding=("recipients",),
    )


def _counts(session: Session, queue: str) -> tuple[int, int]:
    """(visible, in flight), as SQS guesses them."""
    attributes = session.sqs.get_queue_attributes(
        QueueUrl=session.queue_url(queue),
        AttributeNames=[
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
        ],
    )["Attributes"]
    return (
        int(attributes["ApproximateNumberOfMessages"]),
        int(attributes["ApproximateNumberOfMessagesNotVisible"]),
    )
