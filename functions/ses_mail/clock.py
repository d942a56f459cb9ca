"""The one place where time is read, so that the embedded cloud can let it run faster."""

import time
from datetime import UTC, datetime


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def iso(at: float | None = None) -> str:
    """RFC 3339 in UTC with seconds, as the routing and deliveries tables keep it."""
    moment = datetime.fromtimestamp(now() if at is None else at, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(timestamp: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time stamp; None if it is none."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()
