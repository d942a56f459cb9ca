"""The records of bounces, against a real (moto's) table."""

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ConnectionClosedError
from ses_mail import clients
from ses_mail.bounce_records import BounceRecords, Opened
from ses_mail.deliveries import DeliveryTable, Ended
from ses_mail.errors import DeliveryInProgressError
from ses_mail.outcomes import BOUNCED, SUPPRESSED

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

A, B, C = "a@example.com", "b@example.com", "c@example.com"


@pytest.fixture
def records(aws: "Aws", time: "Clock") -> BounceRecords:
    return BounceRecords(DeliveryTable(clients.dynamodb(), aws.deliveries_table, 90))


def states(aws: "Aws") -> dict[str, tuple[str, str]]:
    return {
        sk.removeprefix("BOUNCE#"): (item["delivery_state"], item.get("reason", ""))
        for sk, item in aws.deliveries().items()
    }


def test_bounces_from_claim_to_end(records: BounceRecords, aws: "Aws") -> None:
    opened = records.open("m1", [A, B], "", 90)
    claimed, ended = opened.claim, opened.ended
    assert claimed
    assert not ended
    assert states(aws) == {A: ("claimed", ""), B: ("claimed", "")}
    records.mark_sending(claimed, "arn")
    assert states(aws) == {A: ("sending", ""), B: ("sending", "")}
    records.end(claimed, Ended(BOUNCED, "b1"), "arn")
    assert states(aws) == {A: ("bounced", ""), B: ("bounced", "")}
    assert records.open("m1", [A, B], "", 90) == Opened(
        None, {A: Ended(BOUNCED, "b1"), B: Ended(BOUNCED, "b1")}
    )
    opened = records.open("m1", [A, B], "nonce", 90)
    again, ended = opened.claim, opened.ended
    assert again
    assert not ended


def test_every_record_is_a_delivery(records: BounceRecords, aws: "Aws") -> None:
    """Whoever counts deliveries asks for this type."""
    records.open("m1", [A, B], "", 90)
    assert [item["entity_type"] for item in aws.deliveries().values()] == ["DELIVERY"] * 2


def test_only_those_left_are_claimed(records: BounceRecords, aws: "Aws") -> None:
    first = records.open("m1", [A], "", 90).claim
    assert first
    records.end(first, Ended(SUPPRESSED, "", "spam"), "arn")
    opened = records.open("m1", [A, B, C], "", 90)
    second, ended = opened.claim, opened.ended
    assert second
    assert second.recipients == [B, C]
    assert ended == {A: Ended(SUPPRESSED, "", "spam")}


def test_bounces_held_by_another_attempt(records: BounceRecords, time: "Clock") -> None:
    held = records.open("m1", [A], "", 90).claim
    assert held
    time.advance(90)
    with pytest.raises(DeliveryInProgressError, match=f"another attempt bounces m1 for {A}"):
        records.open("m1", [B, A], "", 90)
    time.advance(1)
    opened = records.open("m1", [B, A], "", 90)
    taken, ended = opened.claim, opened.ended
    assert taken
    assert not ended
    with pytest.raises(DeliveryInProgressError, match=f"another attempt handles BOUNCE#{A}"):
        records.mark_sending(held, "arn")


def test_two_attempts_that_read_before_either_wrote(
    records: BounceRecords, aws: "Aws", time: "Clock"
) -> None:
    """The transaction decides, not the reading before it."""
    others: list[Any] = []

    def other_attempt_first(**_: Any) -> None:
        if not others:
            others.append("begun")
            others.append(records.open("m1", [A], "", 90).claim)

    events = clients.dynamodb().meta.events
    events.register("before-send.dynamodb.TransactWriteItems", other_attempt_first)
    try:
        with pytest.raises(DeliveryInProgressError, match=r"another attempt handles .* right now"):
            records.open("m1", [A, B], "", 90)
    finally:
        events.unregister("before-send.dynamodb.TransactWriteItems", other_attempt_first)
    assert states(aws) == {A: ("claimed", "")}, "none of the loser's recipients is taken"


def test_unconfirmed_sending_is_ended_and_never_claimed(
    records: BounceRecords, aws: "Aws", time: "Clock"
) -> None:
    lost = records.open("m1", [A], "", 90).claim
    assert lost
    records.mark_sending(lost, "arn:1")
    with pytest.raises(DeliveryInProgressError):
        records.open("m1", [A], "", 90)
    time.advance(91)
    assert records.open("m1", [A], "", 90) == Opened(None, {A: Ended(SUPPRESSED, "", "maybe-sent")})
    assert states(aws) == {A: ("suppressed", "maybe-sent")}
    assert aws.deliveries()[f"BOUNCE#{A}"]["execution"] == "arn:1"


def test_bounces_given_back(records: BounceRecords) -> None:
    first = records.open("m1", [A, B], "", 90).claim
    assert first
    records.mark_sending(first, "arn")
    records.give_back(first)
    second = records.open("m1", [A, B], "", 90).claim
    assert second
    assert second.keys == first.keys


def test_more_recipients_than_a_transaction_takes(records: BounceRecords, aws: "Aws") -> None:
    everyone = [f"r{n}@example.com" for n in range(101)]
    counted = aws.wire.count("dynamodb")
    claimed = records.open("m1", everyone, "", 90).claim
    assert claimed
    records.end(claimed, Ended(BOUNCED, "b1"), "arn")
    assert counted["TransactWriteItems"] == 4
    assert set(states(aws).values()) == {("bounced", "")}


def test_a_conflict_of_transactions_is_not_a_lease(records: BounceRecords, aws: "Aws") -> None:
    def conflict(_: Any) -> tuple[int, bytes]:
        return 400, (
            b'{"__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",'
            b'"CancellationReasons": [{"Code": "TransactionConflict"}, {"Code": "None"}]}'
        )

    aws.wire.reply("dynamodb.TransactWriteItems", conflict)
    with pytest.raises(clients.dynamodb().exceptions.TransactionCanceledException):
        records.open("m1", [A, B], "", 90)


# -- whose bounce it is ----------------------------------------------------------------------------


def test_two_spellings_are_one_recipient(records: BounceRecords, aws: "Aws") -> None:
    """DynamoDB refuses a transaction that writes one item twice."""
    claim = records.open("m1", ["Nobody@Example.com", "nobody@example.com", B], "", 90).claim
    assert claim
    assert claim.recipients == ["Nobody@Example.com", B], "as the envelope spelt it first"
    records.end(claim, Ended(BOUNCED, "b1"), "arn")
    assert set(aws.deliveries()) == {"BOUNCE#nobody@example.com", f"BOUNCE#{B}"}
    assert records.open("m1", ["NOBODY@example.com"], "", 90) == Opened(
        None, {"NOBODY@example.com": Ended(BOUNCED, "b1")}
    )


def test_records_lie_where_a_crash_between_transactions_is_harmless(
    records: BounceRecords, aws: "Aws", time: "Clock"
) -> None:
    """Half marked `sending`, half not: the first half is in doubt, the other half still bounces."""
    everyone = [f"r{n:03}@example.com" for n in range(150)]
    claim = records.open("m1", everyone, "", 90).claim
    assert claim
    aws.wire.lose_request("dynamodb.TransactWriteItems", skip=1)
    with pytest.raises(ConnectionClosedError):
        records.mark_sending(claim, "arn")
    aws.wire.cut()
    time.advance(91)
    again = records.open("m1", everyone, "", 90)
    assert again.claim
    assert again.claim.recipients == everyone[100:]
    assert set(again.ended.values()) == {Ended(SUPPRESSED, "", "maybe-sent")}
    assert list(again.ended) == everyone[:100]
