"""The deliveries table against a model of it, with a crash possible at every write.

The model knows what each record must be: state, labels and recipients of the stored upload, who
holds the lease until when, when the record goes, and how many bounces count for the sender.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ConnectionClosedError
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ses_mail import clients, clock, tables
from ses_mail.bounce_limit import BounceLimit
from ses_mail.bounce_records import BounceRecords
from ses_mail.deliveries import DeliveryTable, Ended
from ses_mail.errors import DeliveryInProgressError
from ses_mail.forward_records import Claim, ForwardRecords, Upload
from ses_mail.outcomes import BOUNCED, MAYBE_SENT, SUPPRESSED

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

DAY = 24 * 3600
LEASE = 330
BOX = "anna@gmail.com"
NOBODY = ("x@our.example", "y@our.example")
LIMIT = 2
START = 1795514405.0
OVER = ("bounced", "suppressed")
LABELS = (("INBOX", "UNREAD"), ("SPAM",))


@dataclass
class Record:
    """One record as it must be; token and until are the lease's."""

    state: str
    expires: int | None
    token: str = ""
    until: int = 0
    upload: Upload | None = None
    result: str = ""
    reason: str = ""


@dataclass
class Attempt:
    """An invocation that still runs, or is believed to."""

    claim: Any
    keys: list[str] = field(default_factory=list)


class Table(RuleBasedStateMachine):
    """Attempts come and go; any write may be the last thing that one of them does."""

    aws: "Aws"
    time: "Clock"
    numbers = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        self.time.now = START
        self.message = f"m{next(self.numbers)}"
        self.days = 90
        self.records: dict[str, Record] = {}
        self.forwards: list[Attempt] = []
        self.bounces: list[Attempt] = []
        self.counted = 0

    # -- what the rules share --

    @property
    def table(self) -> DeliveryTable:
        return DeliveryTable(clients.dynamodb(), self.aws.deliveries_table, self.days)

    def expires(self) -> int | None:
        return int(clock.now()) + max(self.days + 1, 45) * DAY if self.days else None

    def written(self, key: str, **changes: Any) -> None:
        self.records[key] = replace(self.records[key], expires=self.expires(), **changes)

    def held(self, key: str) -> bool:
        record = self.records.get(key)
        return record is not None and record.until >= int(clock.now()) and bool(record.until)

    def owns(self, attempt: Attempt) -> bool:
        records = [self.records[key] for key in attempt.keys]
        return all(r.token == attempt.claim.token and r.state not in OVER for r in records)

    @contextmanager
    def expecting(self, allowed: bool) -> Iterator[None]:
        if allowed:
            yield
            return
        with pytest.raises(DeliveryInProgressError):
            yield

    @contextmanager
    def answer_lost(self, operation: str, lost: bool) -> Iterator[None]:
        """The write happens, and the process is gone before it knows."""
        if not lost:
            yield
            return
        self.aws.wire.lose_answer(f"dynamodb.{operation}")
        try:
            with pytest.raises(ConnectionClosedError):
                yield
        finally:
            self.aws.wire.cut()

    # -- time and parameters --

    @rule(seconds=st.sampled_from([1, LEASE - 1, LEASE, LEASE + 1, 3600, DAY]))
    def time_passes(self, seconds: int) -> None:
        hour = clock.iso()[:13]
        self.time.advance(seconds)
        if clock.iso()[:13] != hour:
            self.counted = 0

    @rule(days=st.sampled_from([0, 30, 90]))
    def retention_changes(self, days: int) -> None:
        self.days = days

    # -- forwards --

    @rule()
    def claim_forward(self) -> None:
        key = f"FORWARD#{BOX}"
        record = self.records.get(key)
        records = ForwardRecords(self.table)
        if record and record.state == "delivered":
            assert records.claim(self.message, BOX, "", LEASE) == Ended("delivered", record.result)
            return
        with self.expecting(not self.held(key)):
            claim = records.claim(self.message, BOX, "", LEASE)
            assert isinstance(claim, Claim)
            assert claim.upload == (record.upload if record else None)
            self.records.setdefault(key, Record("claimed", None))
            self.written(key, token=claim.token, until=int(clock.now()) + LEASE)
            self.forwards.append(Attempt(claim, [key]))

    @precondition(lambda self: self.forwards)
    @rule(data=st.data(), labels=st.sampled_from(LABELS), lost=st.booleans())
    def upload(self, data: st.DataObject, labels: tuple[str, ...], lost: bool) -> None:
        attempt = data.draw(st.sampled_from(self.forwards))
        upload = Upload(
            session=f"https://x/{labels}", recipients=("r@our.example",), labels=labels,
            size=7, etag='"e"',
        )  # fmt: skip
        owned = self.owns(attempt)
        with self.expecting(owned), self.answer_lost("UpdateItem", lost and owned):
            ForwardRecords(self.table).record_upload(attempt.claim, upload)
        if owned:
            self.written(attempt.keys[0], state="uploading", upload=upload)

    @precondition(lambda self: self.forwards)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.forwards))
        owned = self.owns(attempt)
        with self.expecting(owned):
            ForwardRecords(self.table).forget_upload(attempt.claim)
        if owned:
            self.written(attempt.keys[0], state="claimed", upload=None)

    @precondition(lambda self: self.forwards)
    @rule(data=st.data(), lost=st.booleans())
    def deliver(self, data: st.DataObject, lost: bool) -> None:
        attempt = data.draw(st.sampled_from(self.forwards))
        owned = self.owns(attempt)
        with self.expecting(owned), self.answer_lost("UpdateItem", lost and owned):
            ForwardRecords(self.table).record_delivered(attempt.claim, "g1", ["r"], "arn")
        if owned:
            self.written(attempt.keys[0], state="delivered", result="g1", upload=None, until=0)
            self.forwards.remove(attempt)

    @precondition(lambda self: self.forwards)
    @rule(data=st.data())
    def give_back_forward(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.forwards))
        ForwardRecords(self.table).give_back(attempt.claim)
        if self.owns(attempt):
            self.written(attempt.keys[0], until=0)
            self.forwards.remove(attempt)

    # -- bounces --

    @rule(whom=st.sampled_from([NOBODY[:1], NOBODY[1:], NOBODY]))
    def open_bounces(self, whom: tuple[str, ...]) -> None:
        keys = {recipient: f"BOUNCE#{recipient}" for recipient in whom}
        records = BounceRecords(self.table)
        free: list[str] = []
        for recipient, key in keys.items():
            record = self.records.get(key)
            if record and record.state not in OVER:
                if self.held(key):
                    with pytest.raises(DeliveryInProgressError):
                        records.open(self.message, whom, "", LEASE)
                    return
                if record.state == "sending":
                    self.written(key, state="suppressed", reason=MAYBE_SENT, until=0)
                    continue
            if record is None or record.state == "claimed":
                free.append(recipient)
        opened = records.open(self.message, whom, "", LEASE)
        assert (opened.claim.recipients if opened.claim else []) == free
        assert opened.ended == {
            recipient: Ended(record.state, record.result, record.reason)
            for recipient, key in keys.items()
            if recipient not in free
            for record in [self.records[key]]
        }
        if opened.claim:
            token, until = opened.claim.token, int(clock.now()) + LEASE
            for recipient in free:
                self.records[keys[recipient]] = Record("claimed", self.expires(), token, until)
            self.bounces.append(Attempt(opened.claim, [keys[r] for r in free]))

    @precondition(lambda self: self.bounces)
    @rule(data=st.data(), lost=st.booleans())
    def mark_sending(self, data: st.DataObject, lost: bool) -> None:
        attempt = data.draw(st.sampled_from(self.bounces))
        owned = self.owns(attempt)
        with self.expecting(owned), self.answer_lost("TransactWriteItems", lost and owned):
            BounceRecords(self.table).mark_sending(attempt.claim, "arn")
        if owned:
            for key in attempt.keys:
                self.written(key, state="sending")

    @precondition(lambda self: self.bounces)
    @rule(data=st.data(), end=st.sampled_from([BOUNCED, SUPPRESSED]))
    def end_bounces(self, data: st.DataObject, end: str) -> None:
        attempt = data.draw(st.sampled_from(self.bounces))
        owned = self.owns(attempt)
        result, reason = ("b1", "") if end == BOUNCED else ("", "spam")
        with self.expecting(owned):
            BounceRecords(self.table).end(attempt.claim, Ended(end, result, reason), "arn")
        if owned:
            for key in attempt.keys:
                self.written(key, state=end, result=result, reason=reason, until=0)
            self.bounces.remove(attempt)

    @precondition(lambda self: self.bounces)
    @rule(data=st.data())
    def give_back_bounces(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.bounces))
        owned = self.owns(attempt)
        with self.expecting(owned):
            BounceRecords(self.table).give_back(attempt.claim)
        if owned:
            for key in attempt.keys:
                self.written(key, state="claimed", until=0)
            self.bounces.remove(attempt)

    # -- the limit --

    @rule(tag=st.sampled_from(["", "+1", "+2"]))
    def count(self, tag: str) -> None:
        counted = BounceLimit(self.table, LIMIT).count(f"{self.message}{tag}@partner.example")
        assert counted == (self.counted < LIMIT)
        self.counted += counted

    @precondition(lambda self: self.counted)
    @rule()
    def uncount(self) -> None:
        BounceLimit(self.table, LIMIT).uncount(f"{self.message}@partner.example")
        self.counted -= 1

    # -- what must hold --

    def items(self) -> dict[str, dict[str, Any]]:
        found = clients.dynamodb().query(
            TableName=self.aws.deliveries_table,
            KeyConditionExpression="PK = :email",
            ExpressionAttributeValues={":email": {"S": f"EMAIL#{self.message}"}},
        )["Items"]
        return {item["SK"]: item for item in map(tables.deserialize, found)}

    @invariant()
    def the_table_is_as_the_model(self) -> None:
        items = self.items()
        assert items.keys() == self.records.keys()
        for key, record in self.records.items():
            item = items[key]
            assert item["delivery_state"] == record.state, key
            assert item.get("expires_at") == record.expires, (key, record.state)
            assert item.get("lease_until", 0) == record.until, key
            assert item["lease_token"] == record.token, key
            assert (item.get("result_id", ""), item.get("reason", "")) == (
                record.result,
                record.reason,
            )
            upload = item.get("upload", {})
            assert tuple(upload.get("labels", ())) == (
                record.upload.labels if record.upload else ()
            )


def test_the_table_is_as_its_model(aws: "Aws", time: "Clock") -> None:
    class Bound(Table):
        pass

    Bound.aws, Bound.time = aws, time
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],  # against a server, shrinking a failure takes minutes
        ),
    )


@pytest.mark.parametrize(
    ("retention", "days"), [(90, 91), (60, 61), (30, 45), (3650, 3651), (0, None)]
)
def test_how_long_records_live(aws: "Aws", time: "Clock", retention: int, days: int | None) -> None:
    """As long as the email can be redriven or replayed."""
    table = DeliveryTable(clients.dynamodb(), aws.deliveries_table, retention)
    ForwardRecords(table).claim("m1", BOX, "", LEASE)
    BounceRecords(table).open("m1", NOBODY, "", LEASE)
    lives = {item.get("expires_at") for item in aws.deliveries().values()}
    assert lives == {None if days is None else 1795514405 + days * DAY}


def test_an_older_end_is_taken_away(aws: "Aws", time: "Clock") -> None:
    """`RetentionDays` was changed to 0: emails are kept for ever, and so are their records."""
    before, after = (
        ForwardRecords(DeliveryTable(clients.dynamodb(), aws.deliveries_table, days))
        for days in (90, 0)
    )
    claim = before.claim("m1", BOX, "", LEASE)
    assert isinstance(claim, Claim)
    (item,) = aws.deliveries().values()
    assert item["expires_at"]
    after.give_back(claim)
    (item,) = aws.deliveries().values()
    assert "expires_at" not in item


def test_a_refused_claim_is_read_consistently(aws: "Aws", time: "Clock") -> None:
    """Or an email that was delivered a moment ago would seem to be in progress."""
    records = ForwardRecords(DeliveryTable(clients.dynamodb(), aws.deliveries_table, 90))
    records.claim("m1", BOX, "", LEASE)
    asked: list[bool] = []

    def look(params: dict[str, Any], **_: Any) -> None:
        asked.append(json.loads(params["body"])["ConsistentRead"])

    events = clients.dynamodb().meta.events
    events.register("before-call.dynamodb.GetItem", look)
    try:
        with pytest.raises(DeliveryInProgressError):
            records.claim("m1", BOX, "", LEASE)
    finally:
        events.unregister("before-call.dynamodb.GetItem", look)
    assert asked == [True]
