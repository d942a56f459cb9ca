"""`sesmail find`: search the headers of the stored emails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from ses_mail import headers, stored_email
from ses_mail.addresses import canonical
from ses_mail.errors import EmailNotFoundError
from ses_mail.headers import Headers
from ses_mail.notification import SETUP_MESSAGE_ID
from ses_mail.stored_email import StoredEmail

from .. import emails
from ..errors import InvalidInputError
from ..output import progress, show_json, show_table, when
from ..session import Session
from ..texts import shown

# Nearly all headers fit; of others the rest is read too.
_START = 64 * 1024
_WORKERS = 8  # boto3 keeps 10 connections
_TO = ("to", "cc", "delivered-to", "x-original-to")
_SPAN = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A stored email that matches; what its headers say is decoded, printable text."""

    message_id: str
    date: datetime
    sender: str
    to: str
    subject: str
    size: int


@dataclass(frozen=True)
class Wanted:
    """What to look for, as parts of the texts in any case; None = anything."""

    sender: str | None
    to: str | None
    subject: str | None

    def by_headers(self, fields: Headers) -> bool:
        """Whether From and Subject fit; Return-Path counts as From."""
        return _within(self.sender, shown(fields, "from", "return-path")) and _within(
            self.subject, shown(fields, "subject")
        )

    def by_recipient(self, recipients: Sequence[str]) -> bool:
        return _within(self.to, recipients)


def find(
    context: typer.Context,
    sender: Annotated[
        str | None, typer.Option("--from", help="Part of From or Return-Path.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Part of To, Cc or an envelope recipient.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Part of the subject.")] = None,
    since: Annotated[
        str, typer.Option(help="A date or time (2026-11-24), or a span back (30m, 12h, 7d, 2w).")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(help="Likewise; everything up to now if left out.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Emails to show at most.")] = 50,
) -> None:
    """Find stored emails by what their headers say, newest first.

    Changes nothing. Lists the whole bucket and reads the headers of every email of the time span,
    one GET each ($0.0004 per 1,000) until enough are found; --to may also read the record or the
    execution of each, since Bcc recipients stand in no header.

    Example: sesmail find --from zoe@ --subject holiday --since 30d
    """
    session: Session = context.obj
    now = datetime.now(UTC)
    begin, end = moment(since, now), moment(until, now) if until else now + timedelta(days=1)
    if begin >= end:
        raise InvalidInputError(f"--since {since} is not before --until {until}")
    session.look_around()  # S3 would answer from any region
    candidates = sorted(
        (stored for stored in _stored(session) if begin <= stored[1] < end),
        key=lambda stored: stored[1],
        reverse=True,
    )
    wanted = Wanted(sender, to, subject)
    found = _search(session, candidates, wanted, limit)
    if session.as_json:
        show_json(*map(_as_json, found))
        return
    show_table(
        ("message id", "date", "from", "to", "subject", "bytes"),
        [(e.message_id, when(e.date), e.sender, e.to, e.subject, e.size) for e in found],
        empty=f"None of {len(candidates)} emails since {when(begin)} matches.",
        folding=("from", "to", "subject"),
    )


def moment(text: str, now: datetime) -> datetime:
    """`7d` before now, or a date or time (UTC unless it says otherwise)."""
    if span := _SPAN.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        except OverflowError:
            raise InvalidInputError(f"{text} is longer ago than any date") from None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(
            f"{text!r} is neither a span such as 7d nor a date such as 2026-11-24"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _stored(session: Session) -> Iterator[tuple[StoredEmail, datetime]]:
    pages = session.s3.get_paginator("list_objects_v2").paginate(
        Bucket=session.bucket, Prefix=emails.PREFIX
    )
    for page in pages:
        for item in page.get("Contents", []):
            if item["Key"] != f"{emails.PREFIX}{SETUP_MESSAGE_ID}":
                email = StoredEmail(session.bucket, item["Key"], item["Size"], item["ETag"])
                yield email, item["LastModified"]


def _search(
    session: Session,
    candidates: Sequence[tuple[StoredEmail, datetime]],
    wanted: Wanted,
    limit: int,
) -> list[Found]:
    found: list[Found] = []
    with (
        progress(session.as_json) as bar,
        ThreadPoolExecutor(_WORKERS) as pool,
    ):
        task = bar.add_task("Reading headers", total=len(candidates))
        # In small groups: once enough is found, nothing more is read.
        for start in range(0, len(candidates), 4 * _WORKERS):
            group = candidates[start : start + 4 * _WORKERS]
            for match in pool.map(lambda one: _match(session, one[0], one[1], wanted), group):
                bar.advance(task)
                if match and len(found) < limit:
                    found.append(match)
            if len(found) >= limit:
                break
    return found


def _match(session: Session, email: StoredEmail, date: datetime, wanted: Wanted) -> Found | None:
    fields = _headers(session, email)
    message_id = email.key.removeprefix(emails.PREFIX)
    if not wanted.by_headers(fields):
        return None
    recipients = shown(fields, *_TO)
    if not wanted.by_recipient(recipients):
        recipients = emails.envelope(session, message_id)
        if not wanted.by_recipient(recipients):
            return None
    return Found(
        message_id=message_id,
        date=date,
        sender=", ".join(shown(fields, "from")),
        to=", ".join(dict.fromkeys(recipients)),
        subject=", ".join(shown(fields, "subject")),
        size=email.size,
    )


def _headers(session: Session, email: StoredEmail) -> Headers:
    try:
        start = stored_email.read_range(session.s3, email, 0, _START)
        if len(start) == _START and not headers.BLANK_LINE.search(start):
            return stored_email.find(session.s3, email.bucket, email.key)[1]
    except (EmailNotFoundError, session.s3.exceptions.NoSuchKey):
        return []  # expired this moment
    return headers.parse(headers.block_of(start))


def _within(wanted: str | None, texts: Sequence[str]) -> bool:
    if wanted is None:
        return True
    forms = {wanted.casefold(), canonical(wanted) if "@" in wanted else wanted.casefold()}
    return any(form in text.casefold() for form in forms for text in texts)


def _as_json(email: Found) -> dict[str, Any]:
    return {
        "message_id": email.message_id,
        "date": email.date,
        "from": email.sender,
        "to": email.to,
        "subject": email.subject,
        "size": email.size,
    }
