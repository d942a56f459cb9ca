"""Emails whose sender is a person who wants to know that the address does not exist."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bounced:
    """One email.

    `{}` in addresses stands for a number; verdicts in lower case, None = missing; age in seconds;
    domain is that of the bounce's own sender.
    """

    name: str
    sender: str = "jane{}@partner.example"
    raw: bytes = b"From: Jane <jane@partner.example>\r\nSubject: hello\r\n\r\nHello\r\n"
    recipients: tuple[str, ...] = ("nobody{}@example.com",)
    verdicts: Mapping[str, str | None] = field(default_factory=dict)
    age: float = 0.0
    domain: str = "example.com"


def _with(*lines: str) -> bytes:
    return "\r\n".join(["From: jane@partner.example", *lines, "", "Hello", ""]).encode()


CORPUS = [
    Bounced("a stranger's ordinary email"),
    *(
        Bounced(title, raw=_with(line))
        for title, line in (
            ("Auto-Submitted: no", "Auto-Submitted: no"),
            ("Auto-Submitted: No with a comment", "Auto-Submitted: No (I am a person)"),
            ("Auto-Submitted: no with a parameter", "AUTO-SUBMITTED:no; x=y"),
            ("Auto-Submitted: no, folded", "Auto-Submitted:\r\n no"),
            ("Precedence: first-class", "Precedence: first-class"),
            ("about lists, not of one", "X-List-Id: <talk.partner.example>"),
            ("with attachments", 'Content-Type: multipart/mixed; boundary="b"'),
            ("25 hops", "\r\n".join(["Received: from a by b; x"] * 25)),
            ("300 KB of headers", "\r\n".join(f"X-{n}: {'x' * 900}" for n in range(330))),
            ("hostile subject", 'Subject: "\\" {% $x %} \x00 Auto-Submitted: auto-replied'),
        )
    ),
    Bounced("no headers", raw=b"\r\nHello\r\n"),
    Bounced("a body like headers", raw=_with("Subject: x", "", _with("List-Id: <x>").decode())),
    Bounced("a quoted bounce in the body", raw=_with("", "Auto-Submitted: auto-replied")),
    *(
        Bounced(title, verdicts=verdicts)
        for title, verdicts in (
            ("DKIM fails alone", {"dkim": "FAIL"}),
            ("spam in doubt", {"spam": "GRAY"}),
            ("not scanned", {"spam": "DISABLED", "virus": "DISABLED"}),
            ("scan failed", {"spam": "PROCESSING_FAILED", "virus": "PROCESSING_FAILED"}),
            ("no verdict but SPF", dict.fromkeys(("spam", "virus", "dkim", "dmarc"))),
            ("no DMARC policy, SPF passes", {"dmarc": "GRAY"}),
        )
    ),
    # DMARC vouches for From:, so for the envelope sender only where that is the same address.
    *(
        Bounced(
            f"SPF {spf}, DMARC passes for {title}",
            sender,
            raw + b"\r\n\r\nHello\r\n",
            verdicts={"spf": spf},
        )
        for spf, title, sender, raw in (
            ("FAIL", "the sender", "jane@partner.example", b"From: jane@partner.example"),
            (None, "the sender", "jane@partner.example", b"From: Jane <jane@partner.example>"),
            (
                "GRAY",
                "the sender in capitals",
                "jane@partner.example",
                b"FROM: <JANE@PARTNER.EXAMPLE>",
            ),
            (
                "FAIL",
                "a name in quotes",
                "j@partner.example",
                b'From: "Doe, J. <j>" <j@partner.example>',
            ),
            (
                "FAIL",
                "a sender with a tag",
                "jane+a@partner.example",
                b"From: jane+a@partner.example",
            ),
            (
                "FAIL",
                "a name in encoded words",
                "k@partner.example",
                b"From: =?utf-8?q?K=2C?= <k@partner.example>",
            ),
            ("FAIL", "a folded From", "m@partner.example", b"From: M\r\n <m@partner.example>"),
        )
    ),
    Bounced("sent by another, SPF passes", sender="bounces-{}=x@mailer.example"),
    Bounced("nearly a postmaster", sender="postmasters{}@partner.example"),
    Bounced("a subdomain of ours", sender="jane{}@shop.example.com"),
    Bounced("a quoted sender", sender='"jane @ {}"@partner.example'),
    Bounced("20 hours old", age=20 * 3600),
    Bounced(
        "several recipients", recipients=tuple(f"nobody{{}}-{n}@example.com" for n in range(3))
    ),
    Bounced("30 recipients", recipients=tuple(f"nobody{{}}-{n}@example.com" for n in range(30))),
    Bounced("a quoted recipient", recipients=('"no \\"body\\" {}"@example.com',)),
    Bounced("a recipient in capitals", recipients=("NOBODY{}@EXAMPLE.COM",)),
    Bounced(
        "international domain, A-label",
        recipients=("nobody{}@xn--bcher-kva.example",),
        domain="xn--bcher-kva.example",
    ),
    Bounced(
        "international domain, U-label",
        recipients=("nobody{}@Bücher.example",),
        domain="xn--bcher-kva.example",
    ),
]
