"""How many bounces one sender gets in one hour."""

from typing import TYPE_CHECKING

import pytest
from ses_mail import clients
from ses_mail.bounce_limit import BounceLimit
from ses_mail.deliveries import DeliveryTable

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

DAY = 24 * 3600
JANE, BEN = "jane@x.example", "ben@x.example"


@pytest.fixture
def limit(aws: "Aws", time: "Clock") -> BounceLimit:
    return BounceLimit(DeliveryTable(clients.dynamodb(), aws.deliveries_table, 90), 2)


def test_per_sender_and_hour(limit: BounceLimit, aws: "Aws", time: "Clock") -> None:
    assert limit.count(BEN)
    (count,) = aws.deliveries().values()
    assert count == {
        "PK": f"SENDER#{BEN}",
        "SK": "HOUR#2026-11-24T10",
        "entity_type": "BOUNCE_COUNT",
        "bounces": 1,
        "expires_at": 1795514405 + DAY,
    }
    assert [limit.count(JANE) for _ in range(4)] == [True, True, False, False]
    limit.uncount(JANE)
    assert [limit.count(JANE) for _ in range(2)] == [True, False]
    time.advance(3600)
    assert limit.count(JANE)


@pytest.mark.parametrize(
    "spelled", ["jane+1@x.example", "JANE+news@X.example", "jane+a+b@x.example", "Jane@x.example"]
)
def test_a_tag_is_not_another_sender(limit: BounceLimit, spelled: str) -> None:
    """Or whoever forges `victim+N` gets past the limit."""
    assert limit.count("jane+0@x.example")
    assert limit.count(spelled)
    assert not limit.count(JANE)
    limit.uncount(spelled)
    assert limit.count(JANE)


def test_nothing_is_taken_back_from_the_next_hour(
    limit: BounceLimit, aws: "Aws", time: "Clock"
) -> None:
    limit.count(JANE)
    time.advance(3600)
    limit.uncount(JANE)
    assert [item["bounces"] for item in aws.deliveries().values()] == [1]
