"""When a bounce would hurt a third party; one case at least for every reason."""

from typing import TYPE_CHECKING, Any

import pytest
from ses_mail import bounce_policy, headers
from ses_mail.bounce_policy import Received, Verdict

if TYPE_CHECKING:
    from tests.fixtures.clock import Clock

VERDICTS = {
    f"{name}Verdict": {"status": "PASS"} for name in ("spam", "virus", "spf", "dkim", "dmarc")
}
FROM = "From: Jane <jane@partner.example>\r\nTo: x@example.com\r\nSubject: hello"
RECEIVED_AT = 1795514400.0


def email(
    source: str = "jane@partner.example",
    block: str = FROM,
    received_at: float | None = RECEIVED_AT,
    recipients: tuple[str, ...] = ("x@example.com",),
    **verdicts: str | None,
) -> Received:
    receipt: dict[str, Any] = {"recipients": list(recipients), **VERDICTS}
    for name, status in verdicts.items():
        if status is None:
            del receipt[f"{name}Verdict"]
        else:
            receipt[f"{name}Verdict"] = {"status": status}
    fields = headers.parse(block.encode())
    return Received(
        source=source,
        receipt=receipt,
        received_at=received_at,
        fields=fields,
        our_domains=["example.com", "xn--bcher-kva.example"],
    )


def with_header(line: str) -> Received:
    return email(block=f"{line}\r\n{FROM}")


HARMLESS = "harmless"
CASES = [
    ("a stranger's ordinary email", email(), HARMLESS),
    # RFC 5321 §4.5.5: a bounce of a bounce MUST NOT be sent.
    ("null sender", email(""), "null-sender"),
    ("null sender, spelt out", email("<>"), "null-sender"),
    ("only space", email("  "), "null-sender"),
    ("no domain", email("root"), "invalid-sender"),
    ("no host of the internet", email("root@localhost"), "invalid-sender"),
    ("with a name", email("Jane <jane@partner.example>"), "invalid-sender"),
    ("two senders", email("a@x.example,b@y.example"), "invalid-sender"),
    ("our own domain", email("ben@example.com"), "own-sender"),
    ("our own domain in capitals", email("Ben@EXAMPLE.COM."), "own-sender"),
    ("our own domain in Unicode", email("ben@Bücher.example"), "own-sender"),
    (
        "the domain that got it, though the stack's list lacks it",
        email("ben@new.example", recipients=("x@new.example",)),
        "own-sender",
    ),
    ("a subdomain is not ours", email("ben@mail.example.com"), HARMLESS),
    ("mailer-daemon", email("MAILER-DAEMON@partner.example"), "daemon-sender"),
    ("postmaster", email("postmaster@partner.example"), "daemon-sender"),
    ("postmaster with a tag", email("postmaster+x@partner.example"), "daemon-sender"),
    ("quoted mailer-daemon", email('"mailer-daemon"@partner.example'), "daemon-sender"),
    ("looks like a daemon only", email("postmasters@partner.example"), HARMLESS),
    # RFC 3834 §2, §5.
    ("auto-reply", with_header("Auto-Submitted: auto-replied"), "auto-submitted"),
    (
        "auto-generated, with parameters",
        with_header("Auto-Submitted: auto-generated; x=y"),
        "auto-submitted",
    ),
    ("folded and in capitals", with_header("AUTO-SUBMITTED:\r\n Auto-Replied"), "auto-submitted"),
    ("empty value", with_header("Auto-Submitted:"), "auto-submitted"),
    (
        "said twice",
        with_header("Auto-Submitted: no\r\nAuto-Submitted: auto-replied"),
        "auto-submitted",
    ),
    (
        "behind a line that is no header",
        with_header("rubbish\r\nAuto-Submitted: auto-replied"),
        "auto-submitted",
    ),
    ("by a person", with_header("Auto-Submitted: no"), HARMLESS),
    ("by a person, commented", with_header("Auto-Submitted: No (really)"), HARMLESS),
    ("by a person, with a parameter", with_header("Auto-Submitted: no; x=y"), HARMLESS),
    ("mailing list", with_header("List-Id: <talk.partner.example>"), "mailing-list"),
    ("newsletter", with_header("list-unsubscribe: <mailto:x@y.example>"), "mailing-list"),
    ("a header about lists", with_header("X-List-Id: x"), HARMLESS),
    ("bulk", with_header("Precedence: bulk"), "bulk"),
    ("list precedence", with_header("precedence: List"), "bulk"),
    ("junk", with_header("Precedence: junk "), "bulk"),
    ("other precedence", with_header("Precedence: first-class"), HARMLESS),
    ("a report", with_header('Content-Type: multipart/report; report-type="x"'), "report"),
    ("a folded report", with_header("Content-Type:\r\n Multipart/Report"), "report"),
    ("another multipart", with_header("Content-Type: multipart/mixed"), HARMLESS),
    # RFC 5321 §6.2: hostile content SHOULD NOT be answered.
    ("virus", email(virus="FAIL"), "virus"),
    ("spam", email(spam="FAIL"), "spam"),
    ("virus and spam", email(virus="FAIL", spam="FAIL"), "virus"),
    ("forged From:", email(dmarc="FAIL"), "dmarc"),
    ("spam in doubt", email(spam="GRAY"), HARMLESS),
    ("not scanned", email(spam="DISABLED", virus="PROCESSING_FAILED"), HARMLESS),
    ("verdicts missing", email(spam=None, virus=None, dkim=None, dmarc=None), HARMLESS),
    ("DKIM failing alone", email(dkim="FAIL"), HARMLESS),
    # The sender may be forged: whoever gets the bounce must be vouched for.
    ("SPF failed, nothing else vouches", email(spf="FAIL", dmarc="GRAY"), "spf"),
    ("SPF missing", email(spf=None, dmarc="GRAY"), "spf"),
    ("SPF in doubt, DMARC missing", email(spf="GRAY", dmarc=None), "spf"),
    ("forwarded: DMARC vouches for the sender", email(spf="FAIL"), HARMLESS),
    (
        "DMARC vouches for another domain than the envelope's",
        email("bounces@victim.example", spf="FAIL"),
        "spf",
    ),
    ("DMARC without From:", email(block="To: x@example.com", spf="FAIL"), "spf"),
    (
        "DMARC with two authors",
        email(block="From: jane@partner.example, b@evil.example", spf="FAIL"),
        "spf",
    ),
    (
        "DMARC with two From: lines",
        email(block="From: jane@partner.example\r\nFrom: b@evil.example", spf="FAIL"),
        "spf",
    ),
    ("author in capitals", email(block="From: JANE@PARTNER.EXAMPLE", spf="FAIL"), HARMLESS),
    ("25 hops", with_header("\r\n".join(["Received: x"] * 25)), HARMLESS),
    ("26 hops", with_header("\r\n".join(["Received: x"] * 26)), "loop"),
    ("24 hours old", email(received_at=RECEIVED_AT + 5 - 24 * 3600), HARMLESS),
    ("older than 24 hours: SES refuses", email(received_at=RECEIVED_AT + 4 - 24 * 3600), "too-old"),
    ("of unknown age", email(received_at=None), "too-old"),
]


@pytest.mark.parametrize(("case", "reason"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_guard(case: Received, reason: str, time: "Clock") -> None:
    assert bounce_policy.decide(case) == Verdict(reason == HARMLESS, reason)


def test_every_reason_has_a_case() -> None:
    reasons = {reason for reason, _ in bounce_policy._GUARDS}
    assert {reason for _, _, reason in CASES} == reasons | {HARMLESS}
