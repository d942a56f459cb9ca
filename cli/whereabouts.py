"""Where an email is now, for each of its recipients, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ses_mail import delivery_keys, outcomes, routing
from ses_mail.addresses import canonical
from ses_mail.errors import printable

from . import verdicts
from .emails import Email, recorded
from .hints import hint
from .history import Delivery, Story, has, longest_wait
from .letters import Dlq, Letter
from .output import when

# The definition that an execution, given by its ARN, runs.
Definition = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where the email is for some recipients.

    state: delivered, bounced, suppressed, stored, dropped, dead-lettered, queued, under-way,
    retrying, died, lost-sight or unknown; text is a sentence for the operator; letter is the dead
    letter that it is about.
    """

    state: str
    recipients: tuple[str, ...]
    text: str
    letter: Letter | None = field(default=None, compare=False)


def places(email: Email, definition: Definition) -> list[Place]:
    """One entry per different place, the latest last; `definition` is asked for retries only."""
    together: dict[tuple[str, str], list[str]] = {}
    for place in _every(email, definition):
        together.setdefault((place.state, place.text), []).extend(place.recipients)
    return [
        Place(state, tuple(dict.fromkeys(recipients)), text)
        for (state, text), recipients in together.items()
    ]


def stale(email: Email) -> list[Letter]:
    """Dead letters whose recipients a later execution served: redriving them does nothing twice."""
    return [x for x in email.letters if x.recipients and _is_stale(email, x)]


def recipients_of(email: Email) -> list[str]:
    """The envelope recipients as far as anything still names them."""
    named = [r for story in email.stories for r in story.recipients]
    named += [r for letter in (*email.letters, *email.queued) for r in letter.recipients]
    named += [r for key, record in email.records.items() for r in recorded(key, record)]
    return list({canonical(recipient): recipient for recipient in reversed(named)}.values())[::-1]


def _is_stale(email: Email, letter: Letter) -> bool:
    return all(
        (latest := _latest(email, recipient)) is not None
        and latest.redrive.get("attempt", 0) >= letter.attempt > 0
        for recipient in letter.recipients
    )


def _latest(email: Email, recipient: str) -> Story | None:
    serving = [story for story in email.stories if has(story.recipients, recipient)]
    return serving[-1] if serving else None


def _every(email: Email, definition: Definition) -> Iterator[Place]:
    found: list[Place] = []
    for recipient in recipients_of(email):
        found += _before(email, recipient)
        found += _now(email, recipient, definition)
    yield from found
    told = {place.letter.id for place in found if place.letter}
    for letter in email.letters:
        if letter.id not in told and not _is_stale(email, letter):
            yield _waits(letter, tuple(letter.recipients))
    if email.stored and not found and not email.letters:
        yield Place("unknown", (), _only_stored(email))


def _before(email: Email, recipient: str) -> Iterator[Place]:
    """What executions before the latest one did for a recipient, and none did again.

    It stays done, whatever became of a later attempt.
    """
    latest = _latest(email, recipient)
    done: dict[tuple[str, str], tuple[Story, Delivery]] = {}
    for story in email.stories:
        for delivery in story.of(recipient):
            if delivery.outcome in (outcomes.DELIVERED, outcomes.BOUNCED):
                done[delivery.action, delivery.target] = story, delivery
    for story, delivery in done.values():
        if story is not latest:
            yield _settled(email, story, delivery, recipient)


def _now(email: Email, recipient: str, definition: Definition) -> Iterator[Place]:
    if any(has(letter.recipients, recipient) for letter in email.queued):
        text = f"waits in the input queue: the pipe is stopped. Start it: {hint('resume')}"
        yield Place("queued", (recipient,), text)
    elif (story := _latest(email, recipient)) is None:
        yield from _remembered(email, recipient)
    elif deliveries := story.of(recipient):
        for delivery in deliveries:
            yield _of_delivery(email, story, delivery, recipient, definition)
    else:
        yield _unrouted(email, story, recipient)


def _of_delivery(
    email: Email, story: Story, delivery: Delivery, recipient: str, definition: Definition
) -> Place:
    if delivery.outcome in _SETTLED:
        return _settled(email, story, delivery, recipient)
    if delivery.outcome == outcomes.DEAD_LETTERED:
        if letter := _letter_of(email, story, delivery):
            return _waits(letter, (recipient,))
        again = hint("replay", email.message_id, "--recipient", recipient)
        text = (
            f"was dead-lettered because of {delivery.error}, and no dead-letter queue shows its "
            "letter now: it was sent back and starts in a moment, somebody is looking at it, or it "
            f"was discarded. Send it again: {again}"
        )
        return Place("lost-sight", (recipient,), text)
    if delivery.outcome == outcomes.UNPARKED or story.status != "RUNNING":
        return _died(story, recipient)
    return _running(story, delivery, recipient, definition)


# -- what came to its end --------------------------------------------------------------------------


def _settled(email: Email, story: Story, delivery: Delivery, recipient: str) -> Place:
    text = _SETTLED[delivery.outcome](email, story, delivery)
    return Place(delivery.outcome, (recipient,), text)


def _delivered(email: Email, story: Story, delivery: Delivery) -> str:
    folder = f" in the spam folder ({_why_spam(story)})" if story.verdict == "SPAM" else ""
    there = ", where it was already" if delivery.why else ""
    return f"delivered to {delivery.target}{folder} at {_time(delivery.at)}{there}"


def _why_spam(story: Story) -> str:
    return verdicts.why_spam(story.input.get("receipt", {})) or "by SES's verdicts"


def _bounced(email: Email, story: Story, delivery: Delivery) -> str:
    to = story.input["mail"].get("source") or "nobody"
    return f"bounced to {to} at {_time(delivery.at)} ({_rule(delivery)})"


def _suppressed(email: Email, story: Story, delivery: Delivery) -> str:
    return f"not bounced although {_rule(delivery)} says so: {delivery.why}"


def _stored(email: Email, story: Story, delivery: Delivery) -> str:
    obeyed = delivery.matched_rule != outcomes.NO_MATCH
    why = f"{_rule(delivery)} says so" if obeyed else delivery.reason
    return f"stored only: {why}{_keeps(email)}"


def _dropped(email: Email, story: Story, delivery: Delivery) -> str:
    if story.verdict != outcomes.VIRUS:
        return f"dropped: {_rule(delivery)} says so{_keeps(email)}"
    release = hint("replay", email.message_id, "--ignore-verdicts")
    return f"dropped: virus{_keeps(email)}. Release it: {release}"


_SETTLED: dict[str, Callable[[Email, Story, Delivery], str]] = {
    outcomes.DELIVERED: _delivered,
    outcomes.BOUNCED: _bounced,
    outcomes.SUPPRESSED: _suppressed,
    outcomes.STORED: _stored,
    outcomes.DROPPED: _dropped,
}


def _rule(delivery: Delivery) -> str:
    return f"rule {delivery.matched_rule}"


def _keeps(email: Email) -> str:
    if email.stored is None:
        return "; the object is gone"
    return (
        f"; the object is kept until {when(email.stored.expires)}" if email.stored.expires else ""
    )


# -- what did not ----------------------------------------------------------------------------------


def _letter_of(email: Email, story: Story, delivery: Delivery) -> Letter | None:
    for letter in email.letters:
        failure = letter.failure
        if (
            failure.get("executionArn") == story.arn
            and failure.get("target", "") == delivery.target
            and set(letter.recipients) == set(delivery.recipients)
            and (failure.get("action") == "route") == (delivery.action in (routing.PARK, "route"))
        ):
            return letter
    return None


def _waits(letter: Letter, recipients: tuple[str, ...]) -> Place:
    name = letter.queue
    short = next((q.value for q in Dlq if name.rpartition("-")[0] == q.queue), name)
    why = f"because of {letter.error}" if letter.error else "without a reason (SNS or the pipe)"
    chosen = ("--error", letter.error) if letter.error else ()
    redrive = hint("dlq", "redrive", short, *chosen)
    text = f"waits in {name} {why}. Once that is fixed: {redrive}"
    return Place("dead-lettered", recipients, text, letter)


def _unrouted(email: Email, story: Story, recipient: str) -> Place:
    """The execution has not come as far as its deliveries, or left none."""
    for letter in email.letters:
        if letter.failure.get("executionArn") == story.arn:
            return _waits(letter, (recipient,))
    if story.status != "RUNNING":
        return _died(story, recipient)
    task = story.tasks[-1] if story.tasks else None
    failed = f" ({task.errors[-1]})" if task and task.errors else ""
    state = task.state if task else "its start"
    return Place("under-way", (recipient,), f"under way: {state}{failed}")


def _died(story: Story, recipient: str) -> Place:
    text = (
        f"its execution ended as {story.error or story.status}: within the hour the sweeper puts "
        "it into ses-email-input-dlq"
    )
    return Place("died", (recipient,), text)


def _running(story: Story, delivery: Delivery, recipient: str, definition: Definition) -> Place:
    task = delivery.tasks[-1] if delivery.tasks else None
    attempt = task.attempts[-1] if task and task.attempts else None
    if not (task and attempt and attempt.error and attempt.ended):
        state = task.state if task else "For each delivery"
        return Place("under-way", (recipient,), f"under way: {state}")
    wait = longest_wait(definition(story.arn), task)
    latest = f"; next attempt by {when(attempt.ended + timedelta(seconds=wait))}" if wait else ""
    text = (
        f"being retried: attempt {len(task.attempts)} of {task.state} failed with {attempt.error} "
        f"at {when(attempt.ended)} ({printable(attempt.cause)}){latest}"
    )
    return Place("retrying", (recipient,), text)


def _remembered(email: Email, recipient: str) -> Iterator[Place]:
    """Without an execution only the records are left."""
    for key, record in email.records.items():
        if not has(recorded(key, record), recipient):
            continue
        state = str(record.get("delivery_state"))
        mailbox = delivery_keys.mailbox_of(key)
        what = f"{state} to {mailbox}" if mailbox else state
        at = f"at {_time(record.get('updated_at'))}"
        yield Place(state, (recipient,), f"{what} {at}, says its record; no execution is known")


def _only_stored(email: Email) -> str:
    again = hint("replay", email.message_id, "--recipient", "ADDRESS")
    if email.pipe_state == "STOPPED":
        return f"stored, but its notification is in no queue: send it again: {again}"
    return (
        "stored, and no execution knows it (they are kept for 90 days). If it is new, its "
        f"notification is on its way; else: {again}"
    )


def _time(at: Any) -> str:
    return when(at) or "an unknown time"
