"""What the local SES reads from an email and what it leaves alone."""

import pytest

from local.ses import ReceiptRule, parse_headers, strip_switches


@pytest.mark.parametrize(
    ("raw", "stored", "switches"),
    [
        (b"Subject: a\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n", {}),
        (
            b"X-Local-Spam: fail\r\nSubject: a\r\n\r\nb",
            b"Subject: a\r\n\r\nb",
            {"spam": "FAIL"},
        ),
        (
            b"Subject: a\nx-local-dmarc: FAIL\nX-Local-DMARC-Policy: reject\n\nb\r",
            b"Subject: a\n\nb\r",
            {"dmarc": "FAIL", "dmarc-policy": "reject"},
        ),
        (b"A: 1\r\nX-Local-SPF: GRAY\r\n more\r\nB: \xff\r\n\r\n", b"A: 1\r\nB: \xff\r\n\r\n", ...),
        # not in the top-level header
        (b"A: 1\r\n\r\nX-Local-Spam: FAIL\r\n", b"A: 1\r\n\r\nX-Local-Spam: FAIL\r\n", {}),
        (b"A: 1\r\n X-Local-Spam: FAIL\r\n\r\n", b"A: 1\r\n X-Local-Spam: FAIL\r\n\r\n", {}),
        (b"", b"", {}),
        (b"\r\nbody", b"\r\nbody", {}),
        (b"no header at all", b"no header at all", {}),
    ],
)
def test_switches(raw, stored, switches):
    kept, found = strip_switches(raw)
    assert kept == stored
    assert switches is ... or found == switches


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (b"A: 1\r\nB: x\r\n y\r\n\r\nC: 3", [("A", "1"), ("B", "x y")]),
        (b"A: caf\xc3\xa9\n\n", [("A", "café")]),
        (b"A: \xff\n\n", [("A", "�")]),
        (b"A: 1\nA: 2\n\n", [("A", "1"), ("A", "2")]),
        (b"", []),
    ],
)
def test_headers(raw, headers):
    assert parse_headers(raw) == headers


@pytest.mark.parametrize(
    ("recipients", "address", "matches"),
    [
        (["*"], "a@b.c", True),
        (["b.c"], "a@b.c", True),
        (["b.c"], "a@B.C", True),
        (["b.c"], "a@x.b.c", False),
        ([".b.c"], "a@x.b.c", True),
        (["a@b.c"], "a@b.c", True),
        (["a@b.c"], "b@b.c", False),
        (["d.e", "b.c"], '"x@y"@b.c', True),
    ],
)
def test_rule(recipients, address, matches):
    rule = ReceiptRule(recipients, True, True, "bucket", "emails/", "topic")
    assert rule.matches(address) == matches
    assert not ReceiptRule(recipients, False, True, "bucket", "", "").matches(address)
