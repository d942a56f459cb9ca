"""Time stamps as SES writes them and as the tables keep them."""

from typing import TYPE_CHECKING

import pytest
from ses_mail import clock

if TYPE_CHECKING:
    from tests.fixtures.clock import Clock

NOON = 1795521600.0  # 2026-11-24T12:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-24T12:00:00.000Z", NOON),
        ("2026-11-24T12:00:00.250Z", NOON + 0.25),
        ("2026-11-24T12:00:00Z", NOON),
        ("2026-11-24T13:00:00+01:00", NOON),
        ("2026-11-24T12:00:00", NOON),
        ("", None),
        ("yesterday", None),
        ("Tue, 24 Nov 2026 12:00:00 +0000", None),
        ("2026-02-30T12:00:00Z", None),
    ],
)
def test_parse(text: str, seconds: float | None) -> None:
    assert clock.parse(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (NOON, "2026-11-24T12:00:00Z"),
        (NOON + 0.9, "2026-11-24T12:00:00Z"),
        (0.0, "1970-01-01T00:00:00Z"),
    ],
)
def test_iso(seconds: float, text: str) -> None:
    assert clock.iso(seconds) == text


def test_iso_without_a_moment_is_now(time: "Clock") -> None:
    assert clock.iso() == "2026-11-24T10:00:05Z"
    time.advance(55)
    assert clock.iso() == "2026-11-24T10:01:00Z"


def test_time_goes_on() -> None:
    assert clock.now() <= clock.now()
