"""Hostile and odd emails, each under a name and with the reason why it is here.

They are made anew at each import, byte for byte the same. No virus and no working bomb is among
them: what has to be proven is that nothing ever looks into an attachment.
"""

import base64
import email.message
import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Hostile:
    """One email.

    recipients are its envelope's, `{}` stands for a number that makes them unique; stored tells
    whether its headers alone (a loop) keep it from any mailbox.
    """

    name: str
    why: str
    make: Callable[[], bytes]
    sender: str = "jane@partner.example"
    recipients: tuple[str, ...] = ("odd{}@example.com",)
    stored: bool = False

    @cached_property
    def raw(self) -> bytes:
        """The bytes that SES stores."""
        return self.make()

    @property
    def by_smtp(self) -> bool:
        """Whether RFC 5321 lets a client send it: lines end in CR LF and in nothing else, no NUL,
        and without SMTPUTF8 (which SES lacks) every address is ASCII."""
        lines = self.raw.replace(b"\r\n", b"")
        return (
            self.raw.endswith(b"\r\n")
            and not any(c in lines for c in (b"\r", b"\n", b"\x00"))
            and all(address.isascii() for address in (self.sender, *self.recipients))
        )


def _email(*lines: str, body: str = "Hello\r\n") -> bytes:
    head = ("From: Jane <jane@partner.example>", "To: odd@example.com", "Subject: hello", *lines)
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def _raw(block: bytes, body: bytes = b"\r\n\r\nHello\r\n") -> Callable[[], bytes]:
    return lambda: block + body


def _with(*lines: str, body: str = "Hello\r\n") -> Callable[[], bytes]:
    return lambda: _email(*lines, body=body)


def _headers(size: int) -> bytes:
    lines = (f"X-Filler-{number}: {'x' * 900}" for number in range(size // 915 + 1))
    return _email(*lines)


def _deep(levels: int) -> bytes:
    opening = "".join(
        f'Content-Type: multipart/mixed; boundary="b{level}"\r\n\r\n--b{level}\r\n'
        for level in range(levels)
    )
    closing = "".join(f"\r\n--b{level}--\r\n" for level in reversed(range(levels)))
    start = "From: jane@partner.example\r\nMIME-Version: 1.0\r\n"
    return (f"{start}{opening}Content-Type: text/plain\r\n\r\ndeep{closing}").encode()


def _bomb() -> bytes:
    # 1,000 times smaller packed than unpacked, and packed twice over.
    packed = b"\0" * (16 * 1024 * 1024)
    for name in ("bomb.bin", "bomb.zip"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(name, (2026, 11, 24, 10, 0, 0)), packed)
        packed = file.getvalue()
    return _attached("bomb.zip", "application/zip", packed)


def _attached(name: str, kind: str, content: bytes) -> bytes:
    text = base64.encodebytes(content).decode().replace("\n", "\r\n")
    return _email(
        "MIME-Version: 1.0",
        'Content-Type: multipart/mixed; boundary="b"',
        body=f'--b\r\nContent-Type: {kind}\r\nContent-Disposition: attachment; filename="{name}"'
        f"\r\nContent-Transfer-Encoding: base64\r\n\r\n{text}--b--\r\n",
    )


def _noise() -> bytes:
    # The seed is the point: the same bytes each time.
    noise = random.Random("hostile")
    return _email() + noise.randbytes(100_000)


def _dsn() -> bytes:
    report = email.message.EmailMessage()
    report["From"] = "Mail Delivery System <MAILER-DAEMON@partner.example>"
    report["Subject"] = "Undelivered Mail Returned to Sender"
    report["Auto-Submitted"] = "auto-replied"
    report.set_content("It did not arrive.")
    report.make_mixed()
    report.set_boundary("b")
    report.set_type("multipart/report")
    report.set_param("report-type", "delivery-status")
    return report.as_bytes(policy=report.policy.clone(linesep="\r\n"))


CORPUS = [
    Hostile("empty", "nothing but an envelope", _raw(b"", b"")),
    Hostile("one line end", "a blank line and no headers", _raw(b"\r\n", b"")),
    Hostile("one bare CR", "the shortest thing that is no line", _raw(b"\r", b"")),
    Hostile("no headers", "the first line is blank", _raw(b"\r\nFrom: not@a.header\r\n", b"")),
    Hostile("no body", "headers without the blank line", _raw(b"From: a@b.example\r\n", b"")),
    Hostile(
        "no blank line",
        "headers go over into text",
        _raw(b"From: a@b.example\r\nDear colleague\r\nsee you\r\n", b""),
    ),
    Hostile("no From", "a header that RFC 5322 requires is missing", _raw(b"Subject: x")),
    Hostile("only Received", "no header of a person", _raw(b"Received: from a by b; now")),
    Hostile(
        "headers twice",
        "who takes the first and who the last sees another email",
        _with("From: evil@other.example", "Subject: bye", "To: b@c.example", "Message-ID: <a@b>"),
    ),
    Hostile("Message-ID twice", "Gmail folds by it", _with("Message-ID: <a@b>", "Message-ID: <c>")),
    Hostile("500 KB of headers", "SES cuts its notification at 10 KB", lambda: _headers(500_000)),
    Hostile(
        "5,000 header lines",
        "many small ones",
        lambda: _email(*(f"X-{number}: {number}" for number in range(5000))),
    ),
    Hostile(
        "header line of 1 MB", "RFC 5322 ends lines at 998", _with("X-Long: " + "x" * 1024 * 1024)
    ),
    Hostile(
        "subject of 20 KB",
        "longer than all headers in SES's notification",
        lambda: _email().replace(b"hello", b"s" * 20480),
    ),
    Hostile(
        "8-bit headers",
        "Latin-1 without any declaration",
        lambda: _email().replace(b"Jane", b"J\xe4ne").replace(b"hello", b"gr\xfc\xdfe"),
    ),
    Hostile(
        "UTF-8 headers", "RFC 6532, without SMTPUTF8", _with("X-Name: Zoë 日本 🙂", "Subject: ünï")
    ),
    Hostile(
        "invalid UTF-8",
        "overlong forms, surrogates, half of a character",
        _raw(b"From: a@b.example\r\nSubject: \xc0\xaf \xed\xa0\x80 \xe2\x82 \xff"),
    ),
    Hostile(
        "8-bit header name", "no header by any grammar", _raw(b"Fr\xf6m: a@b.example\r\nTo: x")
    ),
    Hostile("NUL", "ends strings of C", _raw(b"From: a\x00@b.example\r\nSub\x00ject: \x00")),
    Hostile("NUL in the body", "binary", _raw(b"From: a@b.example", b"\r\n\r\na\x00b\x00\r\n")),
    Hostile(
        "control characters",
        "terminals obey some, and SQS refuses them",
        _raw(b"From: a@b.example\r\nSubject: \x1b[2J\x07\x08\x7f\xc2\x85 \xef\xbf\xbe"),
    ),
    Hostile("bare LF", "as Unix writes", _raw(b"From: a@b.example\nSubject: x", b"\n\nHi\n")),
    Hostile("bare CR", "as nobody writes any more", _raw(b"From: a@b.example\rTo: x", b"\r\rHi\r")),
    Hostile(
        "line ends of every kind",
        "each counted differently",
        _raw(b"From: a@b.example\nTo: x\rX: y\r\r\nZ: 1\n\rQ: 2", b"\r\n\nHi\r\r\n"),
    ),
    Hostile(
        "CR CR LF", "text mode applied twice", _raw(b"From: a@b.example\r\r\nX: y", b"\r\r\n" * 2)
    ),
    Hostile(
        "smuggled end of data",
        "CVE-2023-51764: some servers end the email at LF . CR LF",
        _raw(b"From: a@b.example", b"\r\n\r\nHi\n.\r\nMAIL FROM:<evil@x.example>\r\n"),
    ),
    Hostile("dots", "doubled on the way", _raw(b"From: a@b.example", b"\r\n\r\n.\r\n..\r\n.x\r\n")),
    Hostile("body line of 1 MB", "no line end in it", _with(body="x" * 1024 * 1024 + "\r\n")),
    Hostile("no line end at the end", "as many clients' drafts", _with(body="Hello")),
    Hostile("noise", "no text at all", _noise),
    Hostile("deep MIME", "500 levels: a recursive parser dies", lambda: _deep(500)),
    Hostile(
        "broken MIME",
        "a boundary that never comes, a charset that does not exist",
        _with('Content-Type: multipart/mixed; boundary="', "Content-Transfer-Encoding: x-none"),
    ),
    Hostile("zip bomb", "16 MB packed twice; opened by nobody", _bomb),
    Hostile(
        "executable",
        "Gmail's to judge, not ours",
        lambda: _attached("invoice.pdf.exe", "application/pdf", b"MZ" + bytes(200)),
    ),
    Hostile(
        "100 recipients",
        "as many as SES takes in one go",
        _with(),
        recipients=tuple(f"odd{{}}-{number}@example.com" for number in range(100)),
    ),
    *(
        Hostile(f"recipient {title}", why, _with(), recipients=(address,))
        for title, why, address in (
            ("with a space", "quoted", '"odd {}"@example.com'),
            ("with @", "split at the last one", '"odd{}@home"@example.com'),
            ("with quote and backslash", "escaped", '"od\\"d{}\\\\"@example.com'),
            ("with JSONata", "text, whoever evaluates it", "\"{{% $x %}} '{}'\"@example.com"),
            ("with +", "quoted, so no tag", '"odd {}+x"@example.com'),
            ("with every character", "RFC 5322 atext", "!#$%&'*-/=?^_`{{|}}~{}@example.com"),
            ("with a tag", "normalized", "odd{}+news+more@example.com"),
            ("in capitals", "compared without case", "ODD{}@EXAMPLE.COM"),
            ("at an A-label", "IDNA", "odd{}@xn--bcher-kva.example"),
            ("at a U-label", "the same domain", "odd{}@bücher.example"),
            ("in Unicode", "RFC 6531", "köln{}@example.com"),
            ("at an IP address", "RFC 5321 address literal", "odd{}@[192.0.2.1]"),
        )
    ),
    *(
        Hostile(f"sender {title}", why, _with(), sender=sender)
        for title, why, sender in (
            ("null", "a bounce", ""),
            ("quoted", "@ and quotes in it", '"a\\"b@c d"@partner.example'),
            ("of 250 characters", "longer than RFC 5321 allows", "x" * 236 + "@partner.example"),
        )
    ),
    Hostile(
        "forged From",
        "our own address",
        lambda: _email().replace(b"Jane <jane@partner.example>", b"Admin <admin@example.com>"),
    ),
    Hostile(
        "From with two addresses and comments",
        "RFC 5322 allows it",
        _raw(b'From: "a@x.example" <b@y.example>, (c@z.example) d@w.example (@'),
    ),
    Hostile("25 hops", "the last that is no loop", _with(*["Received: from a by b; now"] * 25)),
    Hostile("loop", "26 hops", _with(*["Received: from a by b; now"] * 26), stored=True),
    Hostile(
        "quoted loop",
        "Received lines of a forwarded email are no hops",
        _with(body="Received: from a by b; now\r\n" * 40),
    ),
    Hostile("DSN", "a bounce", _dsn, sender=""),
    Hostile(
        "list mail",
        "breaks SPF and DMARC in all innocence",
        _with("List-Id: <talk.partner.example>", "Precedence: list", "List-Unsubscribe: <x:y>"),
    ),
    Hostile(
        "subject with quotes and backslashes, folded",
        "JSON, JSONata and logs",
        lambda: _email().replace(
            b"Subject: hello", b'Subject: "a\\"b\\\\" {% $x %} ${y}\r\n\t\\n `$(z)`\r\n  \\u0000'
        ),
    ),
    Hostile(
        "encoded newline in the subject",
        "RFC 2047 hides CR LF and another header",
        lambda: _email().replace(b"hello", b"=?utf-8?q?a=0D=0ABcc:_x=40y?= =?no-such?b?!!?="),
    ),
    Hostile(
        "Delivered-To of its own",
        "ours go on top of it",
        lambda: b"Delivered-To: victim@example.com\r\n" + _email(),
    ),
    Hostile(
        "mbox line first",
        "as exported mailboxes have it",
        lambda: b"From jane@partner.example Tue Nov 24 10:00:00 2026\r\n" + _email(),
    ),
    Hostile(
        "2 MiB of one folded header",
        "joined line by line it took a minute of CPU, and could not be fetched",
        lambda: b"X: y\r\n" + b" \r\n" * (2 * 1024 * 1024 // 3 - 100) + _email(),
    ),
    Hostile(
        "2 MiB of empty headers",
        "as many fields as fit",
        lambda: b"X:\r\n" * (2 * 1024 * 1024 // 4 - 100) + _email(),
    ),
    Hostile(
        "bare CR everywhere, and 26 Received in the body",
        "no LF ends the headers: the body is not a forwarding loop",
        lambda: _email(body="Received: x\r\n" * 26).replace(b"\r\n", b"\r"),
    ),
    Hostile("fold first", "a continuation of nothing", lambda: b" folded\r\n" + _email()),
    Hostile(
        "body like headers",
        "behind the blank line nothing counts",
        _with(body="Auto-Submitted: auto-replied\r\nDelivered-To: x@y.example\r\n\r\nX: y\r\n"),
    ),
    Hostile(
        "switches in the body",
        "the embedded cloud's header lines, where they are only text",
        _with(body="X-Local-Virus: FAIL\r\nX-Local-Spam: FAIL\r\n"),
    ),
]
