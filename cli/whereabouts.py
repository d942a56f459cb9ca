"""Where an email is now, for each of its recipients, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ses_mail import delivery_keys
from ses_mail.addresses import canonical
from ses_mail.errors import printable
from ses_mail.routing import PARK

from .emails import Email, recorded
from .history import Delivery, Story, Task, longest_wait
from .letters import Dlq, Letter
from .output import when


@dataclass(frozen=True)
class Place:
    """Where the email is for some recipients.

    state: delivered, bounced, suppressed, stored, dropped, dead-lettered, queued, under-way,
    retrying, died, lost-sight or unknown; text is a sentence for the operator.
    """

    state: str
    recipients: tuple[str, ...]
    text: str


def places(email: Email, definition: Callable[[str], Mapping[str, Any]]) -> list[Place]:
    """One entry per different place; `definition(execution ARN)` is asked for retries only."""
    found: list[Place] = []
    for place in _every(email, definition):
        for index, other in enumerate(found):
            if (other.state, other.text) == (place.state, place.text):
                together = dict.fromkeys(other.recipients + place.recipients)
                found[index] = replace(other, recipients=tuple(together))
                break
        else:
            found.append(place)
    return found


def stale(email: Email) -> list[Letter]:
    """Dead letters whose recipients a later execution served: redriving them does nothing twice."""
    return [x for x in email.letters if x.recipients and _is_stale(email, x)]


def _is_stale(email: Email, letter: Letter) -> bool:
    return all(
        (latest := _latest(email, recipient)) is not None
        and latest.redrive.get("attempt", 0) >= letter.attempt > 0
        for recipient in letter.recipients
    )


def _latest(email: Email, recipient: str) -> Story | None:
    serving = [s for s in email.stories if _serves(s.recipients, recipient)]
    return serving[-1] if serving else None


def _serves(recipients: list[str] | tuple[str, ...], recipient: str) -> bool:
    return canonical(recipient) in map(canonical, recipients)


def _every(email: Email, definition: Callable[[str], Mapping[str, Any]]) -> Iterator[Place]:
    told: set[str] = set()
    for recipient in recipients_of(email):
        queued = [x for x in email.queued if _serves(x.recipients, recipient)]
        if queued:
            yield Place(
                "queued",
                (recipient,),
                "waits in the input queue: the pipe is stopped. Start it: sesmail resume",
            )
            continue
        story = _latest(email, recipient)
        if story is None:
            yield from _remembered(email, recipient)
            continue
        mine = [d for d in story.deliveries if _serves(d.recipients, recipient)]
        for delivery in mine:
            letter = _letter_of(email, story, delivery)
            told.update([letter.id] if letter else [])
            yield _place(email, story, delivery, recipient, letter, definition)
        if not mine:
            letters = [x for x in email.letters if x.failure.get("executionArn") == story.arn]
            told.update(x.id for x in letters)
            yield _unrouted(story, recipient, letters)
    for letter in email.letters:
        if letter.id not in told and not _is_stale(email, letter):
            yield Place("dead-lettered", tuple(letter.recipients), _waits(letter))
    if not (email.stories or email.records or email.letters or email.queued) and email.stored:
        yield Place("unknown", (), _only_stored(email))


def recipients_of(email: Email) -> list[str]:
    """The envelope recipients as far as anything still tells them."""
    named = [r for story in email.stories for r in story.recipients]
    named += [r for letter in (*email.letters, *email.queued) for r in letter.recipients]
    named += [r for key, record in email.records.items() for r in recorded(key, record)]
    return list({canonical(recipient): recipient for recipient in reversed(named)}.values())[::-1]


def _place(
    email: Email,
    story: Story,
    delivery: Delivery,
    recipient: str,
    letter: Letter | None,
    definition: Callable[[str], Mapping[str, Any]],
) -> Place:
    at = _time(delivery.at)
    rule = f"rule {delivery.matched_rule}"
    command = f"sesmail replay {email.message_id} --recipient {recipient}"
    if delivery.outcome == "delivered":
        folder = " in the spam folder" if story.verdict == "SPAM" else ""
        there = ", where it was already" if delivery.why else ""
        text = f"delivered to {delivery.target}{folder} at {at}{there}"
    elif delivery.outcome == "bounced":
        text = f"bounced to {story.input['mail'].get('source') or 'nobody'} at {at} ({rule})"
    elif delivery.outcome == "suppressed":
        text = f"not bounced although {rule} says so: {delivery.why}"
    elif delivery.outcome == "stored":
        why = f"{rule} says so" if delivery.matched_rule != "none" else delivery.reason
        text = f"stored only: {why}{_keeps(email)}"
    elif delivery.outcome == "dropped":
        if story.verdict == "virus":
            text = (
                f"dropped: virus{_keeps(email)}. Release it: "
                f"sesmail replay {email.message_id} --ignore-verdicts"
            )
        else:
            text = f"dropped: {rule} says so{_keeps(email)}"
    elif delivery.outcome == "dead-lettered":
        if letter:
            return Place("dead-lettered", (recipient,), _waits(letter))
        return Place(
            "lost-sight",
            (recipient,),
            f"was dead-lettered because of {delivery.error}, and no dead-letter queue shows its "
            "letter now: it was sent back and starts in a moment, somebody is looking at it, or it "
            f"was discarded. Send it again: {command}",
        )
    elif delivery.outcome == "unparked" or story.status != "RUNNING":
        return _died(story, recipient)
    else:
        return _running(story, delivery.tasks, recipient, definition)
    return Place(delivery.outcome, (recipient,), text)


def _letter_of(email: Email, story: Story, delivery: Delivery) -> Letter | None:
    for letter in email.letters:
        failure = letter.failure
        if (
            failure.get("executionArn") == story.arn
            and failure.get("target", "") == delivery.target
            and set(letter.recipients) == set(delivery.recipients)
            and (failure.get("action") == "route") == (delivery.action in (PARK, "route"))
        ):
            return letter
    return None


def _waits(letter: Letter) -> str:
    name = letter.queue
    short = next((q.value for q in Dlq if name.rpartition("-")[0] == q.queue), name)
    why = f"because of {letter.error}" if letter.error else "without a reason (SNS or the pipe)"
    chosen = f" --error {letter.error}" if letter.error else ""
    return f"waits in {name} {why}. Once that is mended: sesmail dlq redrive {short}{chosen}"


def _unrouted(story: Story, recipient: str, letters: list[Letter]) -> Place:
    """The execution has not come as far as its deliveries, or left none."""
    if letters:
        return Place("dead-lettered", (recipient,), _waits(letters[0]))
    if story.status == "RUNNING":
        state = story.tasks[-1].state if story.tasks else "its start"
        failed = (
            f" ({story.tasks[-1].errors[-1]})" if story.tasks and story.tasks[-1].errors else ""
        )
        return Place("under-way", (recipient,), f"under way: {state}{failed}")
    return _died(story, recipient)


def _died(story: Story, recipient: str) -> Place:
    return Place(
        "died",
        (recipient,),
        f"its execution ended as {story.error or story.status}: within the hour the sweeper puts "
        "it into ses-email-input-dlq",
    )


def _running(
    story: Story,
    tasks: list[Task],
    recipient: str,
    definition: Callable[[str], Mapping[str, Any]],
) -> Place:
    task = tasks[-1] if tasks else None
    attempt = task.attempts[-1] if task and task.attempts else None
    if not (task and attempt and attempt.error and attempt.ended):
        state = task.state if task else "For each delivery"
        return Place("under-way", (recipient,), f"under way: {state}")
    wait = longest_wait(definition(story.arn), task)
    latest = f"; next attempt by {_time(attempt.ended + timedelta(seconds=wait))}" if wait else ""
    return Place(
        "retrying",
        (recipient,),
        f"being retried: attempt {len(task.attempts)} of {task.state} failed with {attempt.error} "
        f"at {_time(attempt.ended)} ({printable(attempt.cause)}){latest}",
    )


def _remembered(email: Email, recipient: str) -> Iterator[Place]:
    """Without an execution only the records tell."""
    for key, record in email.records.items():
        if not _serves(recorded(key, record), recipient):
            continue
        state = str(record.get("delivery_state"))
        mailbox = delivery_keys.mailbox_of(key)
        what = f"{state} to {mailbox}" if mailbox else state
        at = f"at {record.get('updated_at')}"
        yield Place(state, (recipient,), f"{what} {at}, says its record; no execution is known")


def _only_stored(email: Email) -> str:
    if email.pipe_state == "STOPPED":
        return "stored, but its notification is in no queue: send it again with sesmail replay"
    return (
        "stored, and no execution knows it (they are kept for 90 days). If it is new, its "
        f"notification is on its way; else: sesmail replay {email.message_id} --recipient ADDRESS"
    )


def _keeps(email: Email) -> str:
    if email.stored is None:
        return "; the object is gone"
    if email.stored.expires is None:
        return ""
    return f"; the object is kept until {email.stored.expires:%Y-%m-%d}"


def _time(at: datetime | None) -> str:
    return when(at) or "an unknown time"
