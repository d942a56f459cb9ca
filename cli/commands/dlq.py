"""`sesmail dlq`: look at dead letters, send them back, or throw them away."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from ses_mail.errors import printable
from ses_mail.notification import message_id_of

from .. import automation
from ..errors import CheckFailedError, InvalidInputError
from ..letters import Dlq, Letter, held, peek, send_back
from ..output import confirm, console, iso, progress, say, show_fields, show_json, show_table, when
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
        show_json({"queues": rows})
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
    if session.as_json:
        show_json({"letters": [letter.as_json() for letter in letters]})
        return
    for letter in letters:
        _show(letter)
    if not letters:
        console().print("No such letter.")


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
            "error": letter.error or "none told (SNS or the pipe put it here)",
            "cause": printable(letter.cause),
            "when": when(failure.get("at") or letter.sent),
            "execution": failure.get("executionArn"),
        }
    )
    console().print()


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
    """Send dead letters back to the input queue, once their cause is mended.

    Runs the document SESMail-DLQ-Redrive-{env}, again while its time limit ends it; the letters of
    one email (--message-id) are sent from here. Rules are looked up anew, and what was delivered
    is not delivered again. What fails anew counts as remaining.

    Example: sesmail dlq redrive forwarder --error GmailTokenError
    """
    session: Session = context.obj
    if message_id:
        answer = _redrive_one(session, queue, message_id, error, most)
    else:
        answer = _redrive_many(session, queue, error, most, velocity)
    show_json(answer) if session.as_json else show_fields(answer)
    if answer["remaining"]:
        say("What remains failed anew, is held by another reader, or was beyond this run.")
    if answer["failed"]:
        raise typer.Exit(CheckFailedError.exit_code)


def _redrive_one(
    session: Session, queue: Dlq, message_id: str, error: str | None, most: int
) -> dict[str, int]:
    sent = left = 0
    with held(session, queue.queue) as (letters, delete):
        for letter in letters:
            if not _fits(letter, message_id, error):
                continue
            if most and sent >= most:
                left += 1
                continue
            # In this order: stopped between the two, the copy is dropped by its execution's name.
            send_back(session, letter)
            delete(letter)
            sent += 1
    if not sent:
        say(f"No letter of {message_id} can be seen in {queue.queue}-{session.environment}.")
    return {"redriven": sent, "failed": 0, "remaining": 0 if most else left}


def _redrive_many(
    session: Session, queue: Dlq, error: str | None, most: int, velocity: int
) -> dict[str, int]:
    total = sum(_counts(session, queue.queue))
    done = failed = remaining = 0
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
                **({"Error": error} if error else {}),
            }
            outputs = automation.run(session, session.redrive_document, parameters, follow)
            moved = int(outputs["RedrivenCount"])
            done += moved
            failed, remaining = int(outputs["FailedCount"]), int(outputs["Remaining"])
            if most and done >= most:
                remaining = 0  # what was asked for is done
            # A run that came to the queue's end left only what failed anew: sent back once more,
            # mail whose cause is not mended would go in circles.
            if not (remaining and moved and _TIME_LIMIT in outputs["Summary"]):
                break
    return {"redriven": done, "failed": failed, "remaining": remaining}


@dlq.command()
def discard(
    context: typer.Context,
    queue: QueueArgument,
    error: ErrorOption = None,
    message_id: MessageOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Where to keep what is discarded, as JSON lines.",
            show_default="discarded-{queue}-{time}.jsonl",
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
        say("No such letter; nothing was discarded.")
        if session.as_json:
            show_json({"discarded": [], "saved": None})
        return
    if not session.as_json:
        _list(list(chosen.values()))
    confirm(f"Discard {len(chosen)} letters of {queue.queue}-{session.environment}?", yes)
    path = save or Path(f"discarded-{queue.value}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl")
    discarded: list[Letter] = []
    # Received anew: while the question stood, a letter may have been redriven.
    with (
        path.open("a", encoding="utf-8") as file,
        held(session, queue.queue) as (letters, delete),
    ):
        for letter in letters:
            if letter.id in chosen:
                file.write(json.dumps(letter.as_json()) + "\n")
                file.flush()
                delete(letter)
                discarded.append(letter)
    if session.as_json:
        show_json({"discarded": [x.as_json() for x in discarded], "saved": str(path)})
        return
    console().print(
        f"Discarded {len(discarded)} of {len(chosen)} letters, kept in {path}. Their emails stay "
        "in the bucket; to send one again: sesmail replay MESSAGE_ID",
        markup=False,
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
