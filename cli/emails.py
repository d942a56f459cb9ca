"""All that is known of one email: its executions, records, dead letters and stored object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError
from ses_mail import delivery_keys, notification, stored_email, tables
from ses_mail.errors import EmailNotFoundError
from ses_mail.headers import Headers

from . import history, letters
from .history import Story
from .letters import Dlq, Letter
from .session import INPUT_QUEUE, Session

PREFIX = "emails/"
# Of a record: a session is a credential, the rest says nothing to an operator.
_PRIVATE = ("PK", "upload", "lease_token", "entity_type")
# Clocks differ, and SES notifies us before its object's time stamp is written.
_SLACK = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The email's object: size in bytes, and when the bucket's rule removes it, if ever."""

    bucket: str
    key: str
    size: int
    etag: str
    since: datetime
    expires: datetime | None


@dataclass(frozen=True, kw_only=True)
class Email:
    """What was found: stories oldest first, records of the deliveries table under their sort keys.

    queued are messages of the input queue, looked at only if the pipe is stopped. listed_since
    says that executions which started before it were not listed, None that all were.
    """

    message_id: str
    stories: tuple[Story, ...]
    records: dict[str, dict[str, Any]]
    letters: tuple[Letter, ...]
    queued: tuple[Letter, ...]
    stored: Stored | None
    pipe_state: str
    listed_since: datetime | None

    @property
    def is_known(self) -> bool:
        return bool(self.stories or self.records or self.letters or self.queued or self.stored)

    @property
    def attempt(self) -> int:
        """The highest attempt that exists or waits."""
        ran = (int(story.redrive.get("attempt", 0)) for story in self.stories)
        return max([0, *ran, *(letter.attempt for letter in (*self.letters, *self.queued))])

    @property
    def receipt(self) -> Mapping[str, Any]:
        """What SES said when it took the email; empty if nothing repeats it any more."""
        for story in self.stories:
            if receipt := story.input.get("receipt"):
                return dict(receipt)
        for letter in (*self.letters, *self.queued):
            if notification := letter.notification:
                return notification.receipt
        return {}


def look_up(session: Session, given: str, pages: int = 20) -> Email:
    """given is a message id, an execution's name or its ARN.

    Executions are found by their names where those are known: the first one's, and those that
    records and dead letters name. Others (a redrive that stored the email, say) only show in the
    list of all executions, which has no filter by name: it is read back to the email's arrival,
    at most `pages` pages of 1,000.
    """
    message_id = notification.message_id_of(given.rpartition(":")[2])
    with ThreadPoolExecutor() as pool:
        state = session.pipes.describe_pipe(Name=session.pipe)["DesiredState"]
        queues = [queue.queue for queue in Dlq] + ([INPUT_QUEUE] if state == "STOPPED" else [])
        peeked = pool.map(lambda queue: letters.peek(session, queue), queues)
        stored = find_stored(session, message_id)
        records = dict(_records(session, message_id))
        found = [x for queue in peeked for x in queue if x.message_id == message_id]
    waiting = [x for x in found if not x.queue.startswith(f"{INPUT_QUEUE}-{session.environment}")]
    queued = [x for x in found if x not in waiting]
    names = {message_id, given.rpartition(":")[2]}
    names |= {
        str(record["execution"]).rpartition(":")[2]
        for record in records.values()
        if record.get("execution")
    }
    names |= {name for sk in records if (name := delivery_keys.execution_of(sk))}
    names |= {
        str(letter.failure["executionArn"]).rpartition(":")[2]
        for letter in found
        if letter.failure.get("executionArn")
    }
    known = dict(_stories(session, map(session.execution_arn, names)))
    arrived = min(
        [story.started for story in known.values()] + ([stored.since] if stored else []),
        default=None,
    )
    listed, since = _listed(session, message_id, arrived, pages) if known or stored else ([], None)
    known |= dict(_stories(session, (arn for arn in listed if arn not in known)))
    return Email(
        message_id=message_id,
        stories=tuple(sorted(known.values(), key=lambda story: story.started)),
        records={sk: r for sk, r in records.items() if not delivery_keys.execution_of(sk)},
        letters=tuple(waiting),
        queued=tuple(queued),
        stored=stored,
        pipe_state=state,
        listed_since=since,
    )


def find_stored(session: Session, message_id: str) -> Stored | None:
    """The email's object in the bucket, if it is still there."""
    key = f"{PREFIX}{message_id}"
    try:
        head = session.s3.head_object(Bucket=session.bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return Stored(
        bucket=session.bucket,
        key=key,
        size=head["ContentLength"],
        etag=head["ETag"],
        since=head["LastModified"],
        expires=_expiry(head.get("Expiration", "")),
    )


def headers_of(session: Session, stored: Stored | None) -> Headers:
    """The stored email's headers; none if it is gone."""
    if stored is None:
        return []
    with suppress(EmailNotFoundError):
        return stored_email.find(session.s3, stored.bucket, stored.key)[1]
    return []


def _expiry(header: str) -> datetime | None:
    """From S3's `expiry-date="Fri, 21 Dec 2012 00:00:00 GMT", rule-id="…"`."""
    _, _, rest = header.partition('expiry-date="')
    try:
        return parsedate_to_datetime(rest.partition('"')[0])
    except ValueError:
        return None


def _records(session: Session, message_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    pages = session.dynamodb.get_paginator("query").paginate(
        TableName=session.deliveries_table,
        KeyConditionExpression="PK = :email",
        ExpressionAttributeValues=tables.serialize({":email": delivery_keys.email(message_id)}),
        ConsistentRead=True,
    )
    for page in pages:
        for item in page["Items"]:
            record = tables.deserialize(item)
            sort_key = record.pop("SK")
            yield sort_key, {n: _plain(v) for n, v in record.items() if n not in _PRIVATE}


def recorded(sort_key: str, record: Mapping[str, Any]) -> list[str]:
    """The recipients of a delivery's record."""
    kind, _, rest = sort_key.partition("#")
    return [rest.partition("#")[0]] if kind == "BOUNCE" else list(record.get("recipients", []))


def envelope(session: Session, message_id: str) -> list[str]:
    """Recipients in two cheap looks: the records, or, if there are none, the first execution."""
    recipients = [r for key, record in _records(session, message_id) for r in recorded(key, record)]
    if recipients:
        return list(dict.fromkeys(recipients))
    try:
        execution = session.stepfunctions.describe_execution(
            executionArn=session.execution_arn(message_id)
        )
    except session.stepfunctions.exceptions.ExecutionDoesNotExist:
        return []
    return list(json.loads(execution["input"])["receipt"]["recipients"])


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | list | dict | bool | None) else int(value)


def _stories(session: Session, arns: Iterable[str]) -> Iterator[tuple[str, Story]]:
    stepfunctions = session.stepfunctions
    for arn in arns:
        try:
            execution = stepfunctions.describe_execution(executionArn=arn)
        except (
            stepfunctions.exceptions.ExecutionDoesNotExist,
            stepfunctions.exceptions.InvalidArn,
        ):
            continue
        pages = stepfunctions.get_paginator("get_execution_history").paginate(executionArn=arn)
        events: Iterator[Mapping[str, Any]] = (event for page in pages for event in page["events"])
        yield arn, history.tell(execution, events)


def _listed(
    session: Session, message_id: str, arrived: datetime | None, pages: int
) -> tuple[list[str], datetime | None]:
    """(ARNs of the email's executions in the list, how far back it was read if not to the end)."""
    found: list[str] = []
    listing = session.stepfunctions.get_paginator("list_executions").paginate(
        stateMachineArn=session.state_machine_arn,
        PaginationConfig={"PageSize": 1000, "MaxItems": pages * 1000},
    )
    last: datetime | None = None
    for page in listing:
        for execution in page["executions"]:
            last = execution["startDate"]
            if arrived and last < arrived - _SLACK:
                return found, None
            if notification.message_id_of(execution["name"]) == message_id:
                found.append(execution["executionArn"])
    return found, last if listing.resume_token else None


def definition_of(session: Session, arn: str) -> dict[str, Any]:
    """The definition that an execution runs, which may be older than the deployed one."""
    answer = session.stepfunctions.describe_state_machine_for_execution(executionArn=arn)
    definition: dict[str, Any] = json.loads(answer["definition"])
    return definition


def now() -> datetime:
    return datetime.now(UTC)
