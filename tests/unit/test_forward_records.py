"""The record of every forward, against a real (moto's) table."""

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from ses_mail import clients
from ses_mail.deliveries import DeliveryTable, Ended
from ses_mail.errors import DeliveryInProgressError
from ses_mail.forward_records import Claim, ForwardRecords, Upload

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

LEASE = 330.0
DAY = 24 * 3600
A, B = "a@example.com", "b@example.com"
UPLOAD = Upload(
    session="https://gmail.googleapis.com/?upload_id=secret",
    recipients=(A, B),
    labels=("INBOX",),
    size=1000,
    etag='"e"',
)


@pytest.fixture
def records(aws: "Aws", time: "Clock") -> ForwardRecords:
    return ForwardRecords(DeliveryTable(clients.dynamodb(), aws.deliveries_table, 90))


def claim(records: ForwardRecords, force: str = "") -> Claim:
    claimed = records.claim("m1", "anna@gmail.com", force, LEASE)
    assert isinstance(claimed, Claim)
    return claimed


def test_a_forward_from_claim_to_end(records: ForwardRecords, aws: "Aws") -> None:
    claimed = claim(records)
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
    records.record_upload(claimed, UPLOAD)
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
    records.record_delivered(claimed, "g1", [A, B], "arn:execution")
    (item,) = aws.deliveries().values()
    assert item["delivery_state"] == "delivered"
    assert (item["result_id"], item["recipients"]) == ("g1", [A, B])
    assert item["execution"] == "arn:execution"
    assert not {"upload", "lease_until"} & set(item), "the session is a credential"
    assert records.claim("m1", "anna@gmail.com", "", LEASE) == Ended("delivered", "g1")


def test_a_held_lease_keeps_others_out_until_it_runs_out(
    records: ForwardRecords, time: "Clock"
) -> None:
    first = claim(records)
    for passed in (0, 329):
        time.now = 1795514405.0 + passed
        with pytest.raises(DeliveryInProgressError, match="another attempt delivers m1 to anna"):
            claim(records)
    time.advance(2)
    second = claim(records)
    assert second.token != first.token
    for write in (
        lambda: records.record_upload(first, UPLOAD),
        lambda: records.forget_upload(first),
        lambda: records.record_delivered(first, "g1", [A], "arn"),
    ):
        with pytest.raises(DeliveryInProgressError, match=r"the lease of FORWARD#anna@gmail\.com"):
            write()
    records.give_back(first)  # none of its own any more: silent, and without effect
    with pytest.raises(DeliveryInProgressError):
        claim(records)


def test_a_lease_given_back_is_free_at_once_and_keeps_the_upload(records: ForwardRecords) -> None:
    first = claim(records)
    records.record_upload(first, UPLOAD)
    records.give_back(first)
    assert claim(records).upload == UPLOAD


def test_a_crashed_upload_goes_to_whoever_claims_after_the_lease(
    records: ForwardRecords, time: "Clock"
) -> None:
    records.record_upload(claim(records), UPLOAD)
    time.advance(LEASE + 1)
    assert claim(records).upload == UPLOAD


def test_a_forgotten_upload_is_gone(records: ForwardRecords, aws: "Aws") -> None:
    first = claim(records)
    records.record_upload(first, UPLOAD)
    records.forget_upload(first)
    assert aws.deliveries()["FORWARD#anna@gmail.com"]["delivery_state"] == "claimed"
    records.give_back(first)
    assert claim(records).upload is None


def test_force_is_another_delivery(records: ForwardRecords, aws: "Aws") -> None:
    records.record_delivered(claim(records), "g1", [A], "arn")
    records.record_delivered(claim(records, "again"), "g2", [A], "arn")
    assert {sk: item["result_id"] for sk, item in aws.deliveries().items()} == {
        "FORWARD#anna@gmail.com": "g1",
        "FORWARD#anna@gmail.com#again": "g2",
    }


def test_a_write_whose_answer_got_lost_is_sent_again_in_vain(
    records: ForwardRecords, aws: "Aws"
) -> None:
    """botocore repeats by itself; every condition must hold for the one who wrote before."""
    counted = aws.wire.count("dynamodb")
    aws.wire.lose_answer("dynamodb.UpdateItem", times=1)
    claimed = claim(records)
    for write in (
        lambda: records.record_upload(claimed, UPLOAD),
        lambda: records.forget_upload(claimed),
        lambda: records.give_back(claimed),
        lambda: records.record_delivered(claimed, "g1", [A], "arn"),
    ):
        aws.wire.lose_answer("dynamodb.UpdateItem", times=1)
        write()
    assert counted["UpdateItem"] == 10
    assert aws.deliveries()["FORWARD#anna@gmail.com"]["delivery_state"] == "delivered"


def test_other_errors_of_the_table_are_raised(records: ForwardRecords, aws: "Aws") -> None:
    aws.wire.answer("dynamodb.UpdateItem", 400, "AccessDeniedException")
    with pytest.raises(ClientError, match="AccessDenied"):
        claim(records)


def test_secrets_stay_out_of_representations() -> None:
    assert "secret" not in repr(UPLOAD)
    assert "secret" not in repr(Claim({}, "t", UPLOAD))
