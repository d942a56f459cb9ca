"""`sesmail find`: over the stored emails."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.commands.find import moment
from cli.errors import InvalidInputError
from cli.texts import decoded
from tests.workflow.kit import Post

from .conftest import Sesmail

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def email(sender: str, to: str, subject: str, more: str = "") -> bytes:
    return f"From: {sender}\r\nTo: {to}\r\nSubject: {subject}\r\n{more}\r\nHello\r\n".encode()


def ids(sesmail: Sesmail, line: str) -> list[str]:
    return [e["message_id"] for e in sesmail(f"find {line} --json").lines]


def test_by_sender_recipient_and_subject(post: Post, sesmail: Sesmail) -> None:
    first = post.send(
        post.address("store"),
        raw=email("Zoë <zoe@findme.example>", "anna@example.com", "=?utf-8?q?F=C3=A9rias?= 1"),
    )
    second = post.send(
        post.address("store"),
        raw=email("ben@findme.example", "team@example.com", "Férias\r\n em grupo"),
    )
    assert set(ids(sesmail, "--from FINDME")) == {first, second}
    assert ids(sesmail, "--from zoe@findme --subject férias") == [first]
    assert ids(sesmail, "--from findme --to TEAM@") == [second]
    assert ids(sesmail, "--from findme --subject 'Férias em grupo'") == [second]
    assert len(ids(sesmail, "--from findme --limit 1")) == 1
    assert ids(sesmail, "--from findme --until 1h") == []
    (found,) = sesmail("find --from zoe@findme --json").lines
    assert found["subject"] == "Férias 1"
    assert found["from"] == "Zoë <zoe@findme.example>"
    assert found["size"] > 0
    shown = sesmail("find --from findme").out
    assert "Férias em grupo" in shown
    assert first in shown
    assert "None of " in sesmail("find --from nobody-at-all").err


def test_an_envelope_recipient_that_no_header_names(post: Post, sesmail: Sesmail) -> None:
    """Blind copies: the record of a delivery tells it, or the execution."""
    (forwarded, _), stored = post.forwarded(), post.address("store")
    raw = email("bcc@findme.example", "list@elsewhere.example", "Blind")
    sent = {recipient: post.send(recipient, raw=raw) for recipient in (forwarded, stored)}
    post.cloud.wait_idle()
    for recipient, message_id in sent.items():
        assert ids(sesmail, f"--from bcc@findme --to {recipient}") == [message_id]


def test_large_and_odd_headers(post: Post, sesmail: Sesmail) -> None:
    large = post.send(
        post.address("store"),
        raw=email("large@findme.example", "x@example.com", "start", "X-Filler: x\r\n" * 9000),
    )
    last = post.send(
        post.address("store"),
        raw=b"X-Filler: x\r\n" * 9000 + email("last@findme.example", "x@example.com", "end"),
    )
    odd = post.send(
        post.address("store"),
        raw=b"From: odd@findme.example\r\nSubject: \x1b[31m=?nope?q?x?= [bold]\xff\x00\r\n\r\n",
    )
    empty = post.send(post.address("store"), raw=b"")
    assert ids(sesmail, "--from large@findme") == [large]
    assert ids(sesmail, "--from last@findme --subject end") == [last]
    (found,) = sesmail("find --from odd@findme --json").lines
    assert found["message_id"] == odd
    assert found["subject"].isprintable()
    shown = sesmail("find --from odd@findme").out
    assert "\x1b" not in shown
    assert "[bold]" in shown
    assert empty in ids(sesmail, "--since 1d --limit 1000")


def test_a_span_that_is_none(post: Post, sesmail: Sesmail) -> None:
    assert "neither a span" in sesmail("find --since yesterday", code=2).err
    assert "is not before" in sesmail("find --since 1d --until 2d", code=2).err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("90m", NOW - timedelta(minutes=90)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T10:00:00+01:00", datetime(2026, 11, 1, 9, tzinfo=UTC)),
    ],
)
def test_moments(text: str, wanted: datetime) -> None:
    assert moment(text, NOW) == wanted


@pytest.mark.parametrize("text", ["", "7", "d", "7y", "-7d", "9999999999d", "soon", "2026-13-01"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(InvalidInputError):
        moment(text, NOW)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("=?utf-8?b?Wm/Dqw==?= =?iso-8859-1?q?=E9t=E9?= end", "Zoëété end"),
        ("Zoë".encode().decode("latin-1"), "Zoë"),
        ("\xe9t\xe9", "été"),
        ("=?nosuchcharset?q?=E9?=", "é"),
        ("=?utf-8?b?abcde?=", "=?utf-8?b?abcde?="),
    ],
)
def test_decoding(value: str, text: str) -> None:
    assert decoded(value) == text


@given(st.binary() | st.text(alphabet="=?utf-8bqBQ_ é\\u20", max_size=40).map(str.encode))
def test_any_header_becomes_printable_text(value: bytes) -> None:
    assert decoded(value.decode("latin-1")).isprintable()
