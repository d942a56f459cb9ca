"""Emails that nobody may get a bounce for, though no address takes them, and the reason each has.

Sources: RFC 5321 §4.5.5, §6.1–6.3; RFC 3834 §2, §5; RFC 2919, RFC 2369, RFC 3464.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Quiet:
    """One email.

    `{}` in sender stands for a number; verdicts in lower case (`{"spf": "FAIL"}`), None = SES's
    notification lacks it; age in seconds; released = redriven with ignoreVerdicts. outcome other
    than `suppressed`: the workflow ends it before the bouncer, reason is then the router's.
    """

    name: str
    reason: str
    sender: str = "jane{}@partner.example"
    raw: bytes = b"From: Jane <jane@partner.example>\r\nSubject: hello\r\n\r\nHello\r\n"
    verdicts: Mapping[str, str | None] = field(default_factory=dict)
    age: float = 0.0
    released: bool = False
    outcome: str = "suppressed"


def _with(*lines: str) -> bytes:
    return _block("\r\n".join(lines).encode("latin-1"))


def _block(lines: bytes, end: bytes = b"\r\n") -> bytes:
    first = b"From: Jane <jane@partner.example>"
    return end.join([first, lines, b"Subject: hello", b"", b"Hello", b""])


def _headers(name: str, *cases: tuple[str, str]) -> list[Quiet]:
    return [Quiet(title, name, raw=_with(lines)) for title, lines in cases]


_FILLER = "\r\n".join(f"X-Filler-{number}: {'x' * 900}" for number in range(330))  # 300 KB
_AUTO = "Auto-Submitted: auto-replied"

CORPUS = [
    # RFC 5321 §4.5.5: a notification about a notification MUST NOT be sent.
    *(
        Quiet(title, "null-sender", sender=sender)
        for title, sender in (
            ("null sender", ""),
            ("null sender, spelt out", "<>"),
            ("null sender, spaced", " <> "),
            ("only space", "  "),
        )
    ),
    *(
        Quiet(title, "invalid-sender", sender=sender)
        for title, sender in (
            ("bare MAILER-DAEMON", "MAILER-DAEMON"),
            ("bare postmaster", "postmaster"),
            ("a host of the inside", "root@localhost"),
            ("a name before the sender", "Jane <jane@partner.example>"),
            ("two senders", "a@x.example,b@y.example"),
            ("a source route", "@relay.example:jane@partner.example"),
            ("no local part", "@partner.example"),
            ("a null in brackets", "< >"),
        )
    ),
    *(
        Quiet(title, "daemon-sender", sender=sender)
        for title, sender in (
            ("mailer-daemon", "mailer-daemon@partner.example"),
            ("MAILER-DAEMON", "MAILER-DAEMON@partner.example"),
            ("MAILER-DAEMON with a tag", "Mailer-Daemon+{}@partner.example"),
            ("quoted mailer-daemon", '"MAILER-DAEMON"@partner.example'),
            ("postmaster", "postmaster@partner.example"),
            ("Postmaster", "PostMaster@PARTNER.EXAMPLE"),
        )
    ),
    *(
        Quiet(title, "own-sender", sender=sender)
        for title, sender in (
            ("forged as ours", "ben{}@example.com"),
            ("forged as ours, in capitals", "BEN{}@Example.COM"),
            ("forged as ours, with a final dot", "ben{}@example.com."),
            ("our mailer-daemon", "mailer-daemon@example.com"),
        )
    ),
    # RFC 3834 §2: SHOULD NOT answer; §5: the keyword may have parameters and comments.
    *_headers(
        "auto-submitted",
        ("auto-reply", _AUTO),
        ("auto-generated", "Auto-Submitted: auto-generated"),
        ("auto-notified with a parameter", "Auto-Submitted: auto-notified; owner-email=x"),
        ("auto-reply with a comment", "Auto-Submitted: auto-replied(vacation)"),
        ("comment first", "Auto-Submitted: (no) auto-replied"),
        ("in capitals", "AUTO-SUBMITTED: AUTO-REPLIED"),
        ("an unknown keyword", "Auto-Submitted: now"),
        ("an empty keyword", "Auto-Submitted:"),
        ("folded", "Auto-Submitted:\r\n\tauto-replied"),
        ("space before the colon", "Auto-Submitted : auto-replied"),
        ("twice, no first", f"Auto-Submitted: no\r\n{_AUTO}"),
        ("twice, no last", f"{_AUTO}\r\nAuto-Submitted: no"),
        ("behind a line that is no header", f"rubbish\r\n{_AUTO}"),
        ("behind an 8-bit header name", f"S\xfcbject: x\r\n{_AUTO}"),
        ("behind a NUL", f"X: \x00\r\n{_AUTO}"),
        ("behind a bare CR", f"X: y\r{_AUTO}"),
        ("behind two bare CR", f"X: y\r\r{_AUTO}"),
        ("behind 300 KB of headers", f"{_FILLER}\r\n{_AUTO}"),
        ("behind a header line of 300 KB", f"X: {'x' * 300_000}\r\n{_AUTO}"),
        ("an old autoresponder", "X-Autoreply: yes"),
        ("another old autoresponder", "X-Autorespond: vacation"),
        ("Exchange", "X-Auto-Response-Suppress: NDR, OOF"),
    ),
    Quiet("bare LF everywhere", "auto-submitted", raw=_block(_AUTO.encode(), b"\n")),
    Quiet("CR CR LF everywhere", "auto-submitted", raw=_block(_AUTO.encode(), b"\r\r\n")),
    Quiet("no blank line", "auto-submitted", raw=b"rubbish\r\n" + _AUTO.encode()),
    Quiet(
        "mbox line first",
        "auto-submitted",
        raw=b"From x Tue Nov 24 10:00:00 2026\r\n" + _with(_AUTO),
    ),
    *_headers(
        "mailing-list",
        ("List-Id", "List-Id: <talk.partner.example>"),
        ("List-Unsubscribe", "List-Unsubscribe: <mailto:leave@partner.example>"),
        ("List-Post", "LIST-POST: NO"),
        ("List-Help, folded", "List-Help:\r\n <https://partner.example>"),
        ("a header that will be invented", "List-Whatever:"),
    ),
    *_headers(
        "bulk",
        ("Precedence bulk", "Precedence: bulk"),
        ("Precedence list", "PRECEDENCE: List"),
        ("Precedence junk", "Precedence: junk"),
        ("Precedence bulk with a comment", "Precedence: bulk (newsletter)"),
        ("Precedence bulk, second", "Precedence: first-class\r\nPrecedence: bulk"),
        ("Precedence auto_reply", "Precedence: auto_reply"),
    ),
    *_headers(
        "report",
        ("a DSN", 'Content-Type: multipart/report; report-type=delivery-status; boundary="b"'),
        ("a read receipt", "Content-Type: Multipart/Report;\r\n report-type=x"),
        ("a folded report", "Content-Type:\r\n multipart/report"),
        ("a bare delivery status", "Content-Type: message/delivery-status"),
    ),
    # RFC 5321 §6.2: SHOULD NOT answer hostile content.
    Quiet("virus", "virus", verdicts={"virus": "FAIL"}, outcome="dropped"),
    Quiet("virus and spam", "virus", verdicts={"virus": "FAIL", "spam": "FAIL"}, outcome="dropped"),
    Quiet("virus, released", "virus", verdicts={"virus": "FAIL"}, released=True),
    Quiet("spam", "spam", verdicts={"spam": "FAIL"}),
    Quiet("spam, released", "spam", verdicts={"spam": "FAIL"}, released=True),
    Quiet("forged author", "dmarc", verdicts={"dmarc": "FAIL"}),
    Quiet("forged author, SPF passes", "dmarc", verdicts={"dmarc": "FAIL", "dkim": "FAIL"}),
    # Who gets the bounce must be vouched for.
    *(
        Quiet(f"SPF {status}, DMARC {dmarc}", "spf", verdicts={"spf": status, "dmarc": dmarc})
        for status, dmarc in (
            ("FAIL", "GRAY"),
            ("GRAY", "GRAY"),
            ("PROCESSING_FAILED", "PROCESSING_FAILED"),
            ("DISABLED", "DISABLED"),
            (None, "GRAY"),
            (None, None),
        )
    ),
    Quiet(
        "DMARC passes for another than the sender",
        "spf",
        sender="victim{}@victim.example",
        verdicts={"spf": "FAIL"},
    ),
    Quiet(
        "DMARC passes for the organisation, not for the sender's host",
        "spf",
        sender="victim{}@mail.partner.example",
        verdicts={"spf": "GRAY"},
    ),
    Quiet("DMARC passes without From", "spf", raw=b"To: x\r\n\r\n", verdicts={"spf": "FAIL"}),
    # A DKIM replay: somebody signs up at a mailbox provider, writes to himself, and sends the
    # signed email on with MAIL FROM of another customer. DMARC passes, and SPF need not.
    *(
        Quiet(
            f"DKIM replay: {title}",
            "spf",
            sender=victim,
            raw=b"%s\r\nSubject: hello\r\n\r\nHello\r\n" % author,
            verdicts={"spf": spf},
        )
        for title, victim, author, spf in (
            ("same provider", "victim{}@gmail.example", b"From: a@gmail.example", "FAIL"),
            ("same provider, SPF in doubt", "v{}@gmail.example", b"From: a@gmail.example", "GRAY"),
            ("past the limit by tags", "victim+{}@gmail.example", b"From: a@gmail.example", "FAIL"),
            ("the author's own tag", "a+{}@gmail.example", b"From: a@gmail.example", "FAIL"),
            ("the author without his tag", "a{}@gmail.example", b"From: a+x@gmail.example", "FAIL"),
            ("sub-domain", "a{}@mx.gmail.example", b"From: a@gmail.example", "FAIL"),
            ("the domain above", "a@gmail.example", b"From: a@mx.gmail.example", "FAIL"),
            ("dots", "v.ictim@gmail.example", b"From: victim@gmail.example", "FAIL"),
            ("case, another person", "Victim{}@GMAIL.example", b"From: A@Gmail.Example", "FAIL"),
            ("two From:", "v@gmail.example", b"From: v@gmail.example\r\nFrom: a@x.example", "FAIL"),
            ("two authors", "v@gmail.example", b"From: a@gmail.example, v@gmail.example", "FAIL"),
            (
                "the victim's name",
                "v@gmail.example",
                b'From: "v@gmail.example" <a@x.example>',
                "FAIL",
            ),
            (
                "an address in the name",
                "v@gmail.example",
                b"From: v@gmail.example <a@x.example>",
                "FAIL",
            ),
            (
                "two in brackets",
                "v@gmail.example",
                b"From: <a@x.example> <v@gmail.example>",
                "FAIL",
            ),
            ("a comment", "v@gmail.example", b"From: a@x.example (<v@gmail.example>)", "FAIL"),
            (
                "a comment with the author",
                "v@gmail.example",
                b"From: v@gmail.example (a@x)",
                "FAIL",
            ),
            ("a group", "v@gmail.example", b"From: all: a@x.example, <v@gmail.example>;", "FAIL"),
            ("a source route", "v@gmail.example", b"From: <@x.example:v@gmail.example>", "FAIL"),
            ("a quoted local part", "v@gmail.example", b'From: "v"@gmail.example', "FAIL"),
            (
                "an encoded word",
                "v@gmail.example",
                b"From: =?utf-8?q?v=40gmail=2Eexample?=",
                "FAIL",
            ),
            ("a NUL in the address", "v@gmail.example", b"From: v\x00@gmail.example", "FAIL"),
            ("Sender: is not From:", "v@gmail.example", b"Sender: v@gmail.example", "FAIL"),
            (
                "a domain that looks the same",
                "v@gmail.example",
                b"From: v@gm\xc3\xa0il.example",
                "FAIL",
            ),
        )
    ),
    *(
        Quiet(f"From: is hostile: {title}", "spf", raw=author, verdicts={"spf": "FAIL"})
        for title, author in (
            ("nested comments", b"From: " + b"(" * 2000 + b"\r\n\r\n"),
            ("closed nested comments", b"From: " + b"(" * 2000 + b")" * 2000 + b"\r\n\r\n"),
            ("unclosed quotes", b"From: " + b'"' * 2001 + b"\r\n\r\n"),
            ("backslashes", b'From: "' + b"\\" * 2001 + b"\r\n\r\n"),
            ("brackets", b"From: " + b"<" * 2000 + b"\r\n\r\n"),
            ("groups", b"From: " + b"a:" * 2000 + b"\r\n\r\n"),
        )
    ),
    Quiet("loop", "loop", raw=_with(*["Received: from a by b; x"] * 26), outcome="stored"),
    Quiet(
        "loop, released",
        "loop",
        raw=_with(*["RECEIVED:\r\n from a by b; x"] * 40),
        released=True,
        outcome="stored",
    ),
    Quiet("25 hours old", "too-old", age=25 * 3600),
    Quiet("a month old, redriven", "too-old", age=30 * 86400, released=True),
]
