"""The header block of emails good and bad."""

import email.parser
import email.policy
import string
import sys
from types import FrameType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ses_mail import headers


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        (b"Subject: hello", [("subject", "hello")]),
        (b"A: 1\r\nB: 2\nC: 3\rD: 4", [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]),
        (b"Subject: a\r\n  b\r\n\tc", [("subject", "a b c")]),
        (b"A: 1\r\nA: 2", [("a", "1"), ("a", "2")]),
        (b"A:", [("a", "")]),
        (b"A:b:c", [("a", "b:c")]),
        (b"A \t: b", [("a", "b")]),
        (b"Subject: gr\xfc\xdfe \x00 x", [("subject", "grüße \x00 x")]),
        (b"no header at all\r\nAuto-Submitted: yes", [("auto-submitted", "yes")]),
        (b">From x y\r\nA: 1", [("a", "1")]),
        (b"\xffA: 1\r\nB: 2", [("b", "2")]),
        (b" leading fold\r\nA: 1", [("a", "1")]),
        (b": no name", []),
        (b"", []),
    ],
    ids=[
        "one",
        "any line end",
        "folded",
        "repeated",
        "empty value",
        "colons",
        "space before the colon",
        "8-bit and NUL",
        "behind a broken line, where the standard library stops",
        "mbox line",
        "8-bit name",
        "fold without a field",
        "no name",
        "empty",
    ],
)
def test_parse(block: bytes, fields: list[tuple[str, str]]) -> None:
    assert headers.parse(block) == fields


@pytest.mark.parametrize(
    ("start", "block"),
    [
        (b"A: 1\r\n\r\nB: 2", b"A: 1"),
        (b"A: 1\n\nB: 2", b"A: 1"),
        (b"A: 1\r\rB: 2", b"A: 1"),
        (b"A: 1\r\rB: 2\nC: 3", b"A: 1\r\rB: 2\nC: 3"),
        (b"A: 1\r\r\nB: 2\r\r\n\r\r\nC: 3", b"A: 1\r\r\nB: 2"),
        (b"A: 1\n\r\nB: 2", b"A: 1"),
        (b"A: 1\r\nB: 2", b"A: 1\r\nB: 2"),
        (b"\r\nbody: 1", b""),
        (b"\nbody: 1", b""),
        (b"\rbody: 1", b""),
        (b"", b""),
    ],
)
def test_block_ends_at_the_first_blank_line(start: bytes, block: bytes) -> None:
    assert headers.block_of(start) == block


def test_values_and_hops() -> None:
    fields = headers.parse(b"Received: a\r\nX: 1\r\nRECEIVED: b\r\n by c\r\nx: 2")
    assert headers.values(fields, "x") == ["1", "2"]
    assert headers.values(fields, "y") == []
    assert headers.received_count(fields) == 2


@given(st.binary(max_size=300))
def test_any_bytes_can_be_parsed(block: bytes) -> None:
    for name, value in headers.parse(headers.block_of(block)):
        assert name == name.lower()
        assert name.isascii()
        value.encode("latin-1")


class Steps:
    """Counts what parsing does: lines executed, and bytes that a name is given."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> "Steps | None":
        if frame.f_code.co_filename != headers.__file__:
            return None
        if event == "line":
            self.count += 1
            for name, value in frame.f_locals.items():
                if isinstance(value, bytes) and self._seen.get(name) != id(value):
                    self._seen[name] = id(value)
                    self.count += len(value)
        return self

    @classmethod
    def of(cls, block: bytes) -> int:
        """Steps of parsing the block, seen from outside."""
        steps, before = cls(), sys.gettrace()
        sys.settrace(steps)
        try:
            headers.parse(headers.block_of(block))
        finally:
            sys.settrace(before)
        return steps.count


LINE = st.sampled_from(
    [b" \r\n", b"\t\r\n", b" x\r\n", b"A:\r\n", b"A: b\r\n", b"x", b":", b"\r", b"\n"]
)


@settings(max_examples=50)
@given(st.lists(LINE, min_size=1, max_size=6).map(b"".join))
@example(b" \r\n")
def test_a_longer_block_takes_no_longer_per_byte(unit: bytes) -> None:
    """Any stranger may send two megabytes of headers."""
    few, many = (Steps.of(b"A: b\r\n" + unit * times) for times in (50, 400))
    assert many <= 8 * few + 1000


NAME = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@given(st.lists(st.tuples(NAME, VALUE), max_size=8))
def test_clean_headers_read_as_the_standard_library_reads_them(
    fields: list[tuple[str, str]],
) -> None:
    block = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
    theirs = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(block + b"\r\n")
    assert headers.parse(block) == [(n.lower(), v) for n, v in theirs.items()]
    assert headers.parse(block) == [(n.lower(), v) for n, v in fields]
