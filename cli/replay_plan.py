"""What a replay sends and what comes of it: decided from what is known, nothing is done here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ses_mail import clock, delivery_keys, headers, notification, outcomes, routing
from ses_mail.addresses import canonical
from ses_mail.bounce_policy import MAX_RECEIVED
from ses_mail.errors import InvalidNotificationError
from ses_mail.notification import Notification
from ses_mail.routing import Delivery

from . import verdicts
from .emails import Email, Stored
from .errors import InvalidInputError
from .hints import hint
from .tokens import Tokens

_BOUNCE_WITHIN = 24 * 3600  # seconds after which SES refuses to bounce an email


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the operator wants of the new execution; force is a nonce, or empty."""

    attempt: int
    ignore_verdicts: bool = False
    force: str = ""
    to: str = ""

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

    def message(self, original: Notification, recipients: Sequence[str]) -> Notification:
        """What the input queue gets."""
        redrive = self.redrive(recipients)
        body = {"mail": original.mail, "receipt": original.receipt, "redrive": redrive}
        return notification.parse(body)


# -- for whom --------------------------------------------------------------------------------------


def originals(email: Email) -> list[Notification]:
    """SES's notifications of the email, one per receipt rule that matched, as far as executions and
    letters still know them."""
    found: dict[str, Notification] = {}
    inputs = [json.dumps(story.input) for story in email.stories]
    for body in [*inputs, *(letter.text for letter in (*email.letters, *email.queued))]:
        try:
            parsed = notification.parse(body)
        except InvalidNotificationError:
            continue
        if not parsed.is_setup:
            key = json.dumps(sorted(map(canonical, parsed.receipt["recipients"])))
            found.setdefault(key, parsed)
    return list(found.values())


def from_stored(
    message_id: str, stored: Stored, fields: headers.Headers, recipients: Sequence[str]
) -> Notification:
    """A notification out of what lies in the bucket; raises InvalidInputError."""
    # SES puts its own headers on top, so the first of a name is its.
    found = {
        f"{kind}Verdict": {"status": values[0].strip().upper()}
        for kind in ("spam", "virus")
        if (values := headers.values(fields, f"x-ses-{kind}-verdict"))
    }
    action = {"type": "S3", "bucketName": stored.bucket, "objectKey": stored.key}
    body = {
        # Without an envelope sender nothing is ever bounced, which it is far too late for.
        "mail": {"messageId": message_id, "timestamp": stored.since.isoformat()},
        "receipt": {"recipients": list(recipients), "action": action, **found},
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


def refuse_useless(receipts: Sequence[Mapping[str, Any]], received: int, asked: Asked) -> None:
    """Raise InvalidInputError if the workflow would only drop or store the email again."""
    if any(map(verdicts.is_virus, receipts)) and not asked.ignore_verdicts:
        raise InvalidInputError(
            "SES found a virus: replayed like this the email would only be dropped again. To "
            "deliver it nevertheless, add --ignore-verdicts"
        )
    if received > MAX_RECEIVED:
        raise InvalidInputError(
            f"The email went through {received} servers, which is a loop: the workflow would only "
            "store it again. Take it from the bucket"
        )


# -- what will happen ------------------------------------------------------------------------------


def effect(
    email: Email, original: Notification, delivery: Delivery, asked: Asked, tokens: Tokens | None
) -> str:
    """One delivery's future in words; tokens are None if nobody may say which there are."""
    if delivery.action == routing.FORWARD:
        return _of_forward(email, original, delivery, asked, tokens)
    if delivery.action == routing.BOUNCE:
        return _of_bounce(email, original, delivery, asked)
    if delivery.action == routing.PARK:
        return f"goes to the input dead-letter queue: {delivery.reason}"
    return {routing.STORE: "stays stored", routing.DROP: "is dropped"}[delivery.action]


def _of_forward(
    email: Email, original: Notification, delivery: Delivery, asked: Asked, tokens: Tokens | None
) -> str:
    key = delivery_keys.forward(email.message_id, delivery.target, asked.force)
    if email.records.get(key["SK"], {}).get("delivery_state") == outcomes.DELIVERED:
        return "already delivered: nothing will be sent again without --force"
    if tokens and not tokens.serve(delivery.target):
        give = hint("token", "set", "--mailbox", delivery.target, "--file", "token.json")
        return (
            f"goes to the forwarder's dead-letter queue: no credentials for {delivery.target}. "
            f"First: {give}"
        )
    if (name := _still_running(email, delivery)) and not asked.force:
        return f"{name} still tries to deliver it: one of both will, the other finds it there"
    again = " once more" if asked.force else ""
    spam = not asked.ignore_verdicts and verdicts.why_spam(original.receipt)
    folder = f" into the spam folder ({spam})" if spam else ""
    return f"is delivered{again}{folder}{_last_time(email, delivery)}"


def _of_bounce(email: Email, original: Notification, delivery: Delivery, asked: Asked) -> str:
    keys = [delivery_keys.bounce(email.message_id, r, asked.force) for r in delivery.recipients]
    ended = [email.records.get(key["SK"], {}).get("delivery_state") for key in keys]
    if all(state in (outcomes.BOUNCED, outcomes.SUPPRESSED) for state in ended):
        done = " or ".join(sorted(set(map(str, ended))))
        return f"already {done}: nothing will be sent without --force"
    if clock.now() - _arrived(email, original) > _BOUNCE_WITHIN:
        return "is not bounced: SES refuses that after 24 hours"
    if (name := _still_running(email, delivery)) and not asked.force:
        return f"{name} still tries to bounce it: one of both will"
    return f"is bounced, if that hurts nobody{_last_time(email, delivery)}"


def _last_time(email: Email, delivery: Delivery) -> str:
    """Why the same delivery came to nothing in the latest execution that tried it, if it did."""
    for story in reversed(email.stories):
        for made in story.deliveries:
            if (made.action, made.target) == (delivery.action, delivery.target):
                if made.outcome == outcomes.DEAD_LETTERED:
                    return f"; last time it failed with {made.error}"
                if made.outcome == outcomes.SUPPRESSED:
                    return f"; last time it was suppressed: {made.why}"
                return ""
    return ""


def _still_running(email: Email, delivery: Delivery) -> str:
    """The execution that is at the same delivery now; empty if none is."""
    for story in email.stories:
        if story.status == "RUNNING" and any(
            (made.action, made.target, made.outcome) == (delivery.action, delivery.target, "")
            for recipient in delivery.recipients
            for made in story.of(recipient)
        ):
            return story.name
    return ""


def _arrived(email: Email, original: Notification) -> float:
    given = clock.parse(original.mail.get("timestamp", ""))
    since: datetime | None = email.stored.since if email.stored else None
    return given if given is not None else since.timestamp() if since else 0.0
