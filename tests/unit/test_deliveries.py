"""The record of every delivery, against a real (moto's) table."""

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from ses_mail import clients
from ses_mail.deliveries import BOUNCED, SUPPRESSED, Claim, Deliveries, Ended, Upload
from ses_mail.errors import DeliveryInProgressError

if TYPE_CHECKING:
    from tests.conftest import Aws, Clock

LEASE = 330.0
DAY = 24 * 3600
A, B, C = "a@example.com", "b@example.com", "c@example.com"
UPLOAD = Upload("https://gmail.googleapis.com/?upload_id=secret", (A, B), ("INBOX",), 1000, '"e"')


@pytest.fixture
def table(aws: "Aws", time: "Clock") -> Deliveries:
    return Deliveries(clients.dynamodb(), aws.deliveries_table, 90)


def claim(table: Deliveries, force: str = "") -> Claim:
    claimed = table.claim_forward("m1", "anna@gmail.com", force, LEASE)
    assert isinstance(claimed, Claim)
    return claimed


# -- forwards --------------------------------------------------------------------------------------


def test_a_forward_from_claim_to_end(table: Deliveries, aws: "Aws") -> None:
    claimed = claim(table)
    (item,) = aws.deliveries().values()
    assert item == {
        "PK": "EMAIL#m1",
        "SK": "FORWARD#anna@gmail.com",
        "entity_type": "DELIVERY",
        "delivery_state": "claimed",
        "lease_token": claimed.token,
        "lease_until": 1795514405 + 330,
        "updated_at": "2026-11-24T10:00:05Z",
        "expires_at": 1795514405 + 91 * DAY,
    }
    table.record_upload(claimed, UPLOAD)
    (item,) = aws.deliveries().values()
    assert item["delivery_state"] == "uploading"
    assert item["upload"] == {
        "session": UPLOAD.session,
        "recipients": [A, B],
        "labels": ["INBOX"],
        "size": 1000,
        "etag": '"e"',
        "lease_token": claimed.token,
    }
    table.record_delivered(claimed, "g1", [A, B], "arn:execution")
    (item,) = aws.deliveries().values()
    assert item["delivery_state"] == "delivered"
    assert (item["result_id"], item["recipients"]) == ("g1", [A, B])
    assert item["execution"] == "arn:execution"
    assert not {"upload", "lease_until"} & set(item), "the session is a credential"
    assert table.claim_forward("m1", "anna@gmail.com", "", LEASE) == Ended("delivered", "g1")


def test_a_held_lease_keeps_others_out_until_it_runs_out(table: Deliveries, time: "Clock") -> None:
    first = claim(table)
    for passed in (0, 329):
        time.now = 1795514405.0 + passed
        with pytest.raises(DeliveryInProgressError, match="another attempt delivers m1 to anna"):
            claim(table)
    time.advance(2)
    second = claim(table)
    assert second.token != first.token
    for write in (
        lambda: table.record_upload(first, UPLOAD),
        lambda: table.forget_upload(first),
        lambda: table.record_delivered(first, "g1", [A], "arn"),
    ):
        with pytest.raises(DeliveryInProgressError, match=r"the lease of FORWARD#anna@gmail\.com"):
            write()
    table.give_back(first)  # none of its own any more: silent, and without effect
    with pytest.raises(DeliveryInProgressError):
        claim(table)


def test_a_lease_given_back_is_free_at_once_and_keeps_the_upload(table: Deliveries) -> None:
    first = claim(table)
    table.record_upload(first, UPLOAD)
    table.give_back(first)
    assert claim(table).upload == UPLOAD


def test_a_crashed_upload_goes_to_whoever_claims_after_the_lease(
    table: Deliveries, time: "Clock"
) -> None:
    table.record_upload(claim(table), UPLOAD)
    time.advance(LEASE + 1)
    assert claim(table).upload == UPLOAD


def test_a_forgotten_upload_is_gone(table: Deliveries, aws: "Aws") -> None:
    first = claim(table)
    table.record_upload(first, UPLOAD)
    table.forget_upload(first)
    assert aws.deliveries()["FORWARD#anna@gmail.com"]["delivery_state"] == "claimed"
    table.give_back(first)
    assert claim(table).upload is None


def test_force_is_another_delivery(table: Deliveries, aws: "Aws") -> None:
    table.record_delivered(claim(table), "g1", [A], "arn")
    table.record_delivered(claim(table, "again"), "g2", [A], "arn")
    assert {sk: item["result_id"] for sk, item in aws.deliveries().items()} == {
        "FORWARD#anna@gmail.com": "g1",
        "FORWARD#anna@gmail.com#again": "g2",
    }


def test_a_write_whose_answer_got_lost_is_sent_again_in_vain(table: Deliveries, aws: "Aws") -> None:
    """botocore repeats by itself; every condition must hold for the one who wrote before."""
    counted = aws.wire.count("dynamodb")
    aws.wire.lose_answer("dynamodb.UpdateItem", times=1)
    claimed = claim(table)
    for write in (
        lambda: table.record_upload(claimed, UPLOAD),
        lambda: table.forget_upload(claimed),
        lambda: table.give_back(claimed),
        lambda: table.record_delivered(claimed, "g1", [A], "arn"),
    ):
        aws.wire.lose_answer("dynamodb.UpdateItem", times=1)
        write()
    assert counted["UpdateItem"] == 10
    assert aws.deliveries()["FORWARD#anna@gmail.com"]["delivery_state"] == "delivered"


def test_other_errors_of_the_table_are_raised(table: Deliveries, aws: "Aws") -> None:
    aws.wire.answer("dynamodb.UpdateItem", 400, "AccessDeniedException")
    with pytest.raises(ClientError, match="AccessDenied"):
        claim(table)


@pytest.mark.parametrize(
    ("retention", "days"), [(90, 91), (60, 61), (30, 45), (3650, 3651), (0, None)]
)
def test_how_long_records_live(aws: "Aws", time: "Clock", retention: int, days: int | None) -> None:
    """As long as the email can be redriven or replayed, renewed at each write."""
    table = Deliveries(clients.dynamodb(), aws.deliveries_table, retention)
    claimed = claim(table)
    table.claim_bounces("m1", [A], "", LEASE)
    time.advance(100)
    table.record_delivered(claimed, "g1", [A], "arn")
    for age, item in ((100, "FORWARD#anna@gmail.com"), (0, f"BOUNCE#{A}")):
        expires = aws.deliveries()[item].get("expires_at")
        assert expires == (None if days is None else 1795514405 + age + days * DAY)


def test_secrets_stay_out_of_representations() -> None:
    assert "secret" not in repr(UPLOAD)
    assert "secret" not in repr(Claim({}, "t", UPLOAD))


# -- bounces ---------------------------------------------------------------------------------------


def states(aws: "Aws") -> dict[str, tuple[str, str]]:
    return {
        sk.removeprefix("BOUNCE#"): (item["delivery_state"], item.get("reason", ""))
        for sk, item in aws.deliveries().items()
    }


def test_bounces_from_claim_to_end(table: Deliveries, aws: "Aws") -> None:
    claimed, ended = table.claim_bounces("m1", [A, B], "", 90)
    assert claimed
    assert not ended
    assert states(aws) == {A: ("claimed", ""), B: ("claimed", "")}
    table.mark_sending(claimed, "arn")
    assert states(aws) == {A: ("sending", ""), B: ("sending", "")}
    table.end_bounces(claimed, BOUNCED, "b1", "", "arn")
    assert states(aws) == {A: ("bounced", ""), B: ("bounced", "")}
    assert table.claim_bounces("m1", [A, B], "", 90) == (
        None,
        {A: Ended(BOUNCED, "b1"), B: Ended(BOUNCED, "b1")},
    )
    again, ended = table.claim_bounces("m1", [A, B], "nonce", 90)
    assert again
    assert not ended


def test_only_those_left_are_claimed(table: Deliveries, aws: "Aws") -> None:
    first, _ = table.claim_bounces("m1", [A], "", 90)
    assert first
    table.end_bounces(first, SUPPRESSED, "", "spam", "arn")
    second, ended = table.claim_bounces("m1", [A, B, C], "", 90)
    assert second
    assert [key["SK"] for key in second.keys] == [f"BOUNCE#{B}", f"BOUNCE#{C}"]
    assert ended == {A: Ended(SUPPRESSED, "", "spam")}


def test_bounces_held_by_another_attempt(table: Deliveries, time: "Clock") -> None:
    held, _ = table.claim_bounces("m1", [A], "", 90)
    assert held
    time.advance(90)
    with pytest.raises(DeliveryInProgressError, match=f"another attempt bounces m1 for {A}"):
        table.claim_bounces("m1", [B, A], "", 90)
    time.advance(1)
    taken, ended = table.claim_bounces("m1", [B, A], "", 90)
    assert taken
    assert not ended
    with pytest.raises(DeliveryInProgressError, match=f"another attempt handles BOUNCE#{A}"):
        table.mark_sending(held, "arn")


def test_two_attempts_that_read_before_either_wrote(
    table: Deliveries, aws: "Aws", time: "Clock"
) -> None:
    """The transaction decides, not the reading before it."""
    others: list[Any] = []

    def other_attempt_first(**_: Any) -> None:
        if not others:
            others.append("begun")
            others.append(table.claim_bounces("m1", [A], "", 90)[0])

    events = clients.dynamodb().meta.events
    events.register("before-send.dynamodb.TransactWriteItems", other_attempt_first)
    try:
        with pytest.raises(DeliveryInProgressError, match=r"another attempt handles .* right now"):
            table.claim_bounces("m1", [A, B], "", 90)
    finally:
        events.unregister("before-send.dynamodb.TransactWriteItems", other_attempt_first)
    assert states(aws) == {A: ("claimed", "")}, "none of the loser's recipients is taken"


def test_unconfirmed_sending_is_ended_and_never_claimed(
    table: Deliveries, aws: "Aws", time: "Clock"
) -> None:
    lost, _ = table.claim_bounces("m1", [A], "", 90)
    assert lost
    table.mark_sending(lost, "arn:1")
    with pytest.raises(DeliveryInProgressError):
        table.claim_bounces("m1", [A], "", 90)
    time.advance(91)
    assert table.claim_bounces("m1", [A], "", 90) == (
        None,
        {A: Ended(SUPPRESSED, "", "maybe-sent")},
    )
    assert states(aws) == {A: ("suppressed", "maybe-sent")}
    assert aws.deliveries()[f"BOUNCE#{A}"]["execution"] == "arn:1"


def test_bounces_given_back(table: Deliveries) -> None:
    first, _ = table.claim_bounces("m1", [A, B], "", 90)
    assert first
    table.mark_sending(first, "arn")
    table.give_back_bounces(first)
    second, _ = table.claim_bounces("m1", [A, B], "", 90)
    assert second
    assert second.keys == first.keys


def test_more_recipients_than_a_transaction_takes(table: Deliveries, aws: "Aws") -> None:
    everyone = [f"r{n}@example.com" for n in range(101)]
    counted = aws.wire.count("dynamodb")
    claimed, _ = table.claim_bounces("m1", everyone, "", 90)
    assert claimed
    table.end_bounces(claimed, BOUNCED, "b1", "", "arn")
    assert counted["TransactWriteItems"] == 4
    assert set(states(aws).values()) == {("bounced", "")}


def test_a_conflict_of_transactions_is_no_lease(table: Deliveries, aws: "Aws") -> None:
    def conflict(_: Any) -> tuple[int, bytes]:
        return 400, (
            b'{"__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",'
            b'"CancellationReasons": [{"Code": "TransactionConflict"}, {"Code": "None"}]}'
        )

    aws.wire.reply("dynamodb.TransactWriteItems", conflict)
    with pytest.raises(clients.dynamodb().exceptions.TransactionCanceledException):
        table.claim_bounces("m1", [A, B], "", 90)


def test_the_limit_per_sender_and_hour(table: Deliveries, aws: "Aws", time: "Clock") -> None:
    assert [table.count_bounce("jane@x.example", 2) for _ in range(4)] == [True, True, False, False]
    assert table.count_bounce("ben@x.example", 2)
    table.uncount_bounce("jane@x.example")
    assert [table.count_bounce("jane@x.example", 2) for _ in range(2)] == [True, False]
    counts = {(i["PK"], i["SK"]): i for i in aws.deliveries().values()}
    assert set(counts) <= {
        ("SENDER#jane@x.example", "HOUR#2026-11-24T10"),
        ("SENDER#ben@x.example", "HOUR#2026-11-24T10"),
    }
    assert {i["expires_at"] for i in counts.values()} == {1795514405 + DAY}
    time.advance(3600)
    assert table.count_bounce("jane@x.example", 2)
