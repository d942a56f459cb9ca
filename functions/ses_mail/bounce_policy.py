"""Whether a bounce can be sent without hurting a third party (RFC 5321 §4.5.5, RFC 3834 §2)."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ses_mail import addresses, clock, headers

MAX_RECEIVED = 25
# SES refuses SendBounce for older emails.
_MAX_AGE = 24 * 3600
_DAEMONS = ("mailer-daemon", "postmaster")
_BULK = ("bulk", "list", "junk", "auto_reply")
_REPORTS = ("multipart/report", "message/delivery-status", "message/disposition-notification")
# What programs said of themselves before, and beside, RFC 3834.
_AUTOMATIC = ("x-autoreply", "x-autorespond", "x-auto-response-suppress")


# A display name before `<address>`, or a bare address (RFC 5322 §3.4). Each alternative begins with
# other characters, so matching takes linear time.
_AUTHOR = re.compile(
    r"""(?:"(?:[^"\\]|\\.)*"|[^"\\<>()@,:;])*<([^"\\<>()@,:;\s]+@[^"\\<>()@,:;\s]+)>"""
    r"""|([^"\\<>()@,:;\s]+@[^"\\<>()@,:;\s]+)""",
    re.DOTALL,
)


class Verdict(NamedTuple):
    """Whether to bounce, and the named reason if not."""

    bounce: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Received:
    """What is known of the email that might be bounced.

    source is the envelope sender (MAIL FROM), receipt as in the notification, received_at seconds
    since the epoch or None, our_domains in A-label form.
    """

    source: str
    receipt: Mapping[str, Any]
    received_at: float | None
    fields: headers.Headers
    our_domains: Collection[str]


def decide(email: Received) -> Verdict:
    """Check the guards in order; the first that holds names the reason."""
    for reason, holds in _GUARDS:
        if holds(email):
            return Verdict(False, reason)
    return Verdict(True, "harmless")


def _null_sender(email: Received) -> bool:
    # RFC 5321 §4.5.5: a bounce of a bounce MUST NOT be sent.
    return email.source.strip() in ("", "<>")


def _invalid_sender(email: Received) -> bool:
    return not addresses.is_address(email.source)


def _own_sender(email: Received) -> bool:
    domain = addresses.split(addresses.canonical(email.source))[1]
    recipients = email.receipt["recipients"]
    ours = {addresses.split(addresses.canonical(r))[1] for r in recipients}
    return domain in ours or domain in email.our_domains


def _daemon_sender(email: Received) -> bool:
    local = addresses.split(addresses.without_tag(addresses.canonical(email.source)))[0]
    return local.strip('"') in _DAEMONS


def _auto_submitted(email: Received) -> bool:
    said = any(_keyword(v) != "no" for v in headers.values(email.fields, "auto-submitted"))
    return said or any(name in _AUTOMATIC for name, _ in email.fields)


def _keyword(value: str) -> str:
    # RFC 3834 §5: parameters follow a semicolon, comments stand in parentheses.
    return re.split(r"[;(\s]", value.strip().lower())[0]


def _mailing_list(email: Received) -> bool:
    return any(name.startswith("list-") for name, _ in email.fields)


def _bulk(email: Received) -> bool:
    return any(_keyword(v) in _BULK for v in headers.values(email.fields, "precedence"))


def _report(email: Received) -> bool:
    return any(_keyword(v) in _REPORTS for v in headers.values(email.fields, "content-type"))


def _loop(email: Received) -> bool:
    return headers.received_count(email.fields) > MAX_RECEIVED


def _too_old(email: Received) -> bool:
    return email.received_at is None or clock.now() - email.received_at > _MAX_AGE


def _failed(name: str, email: Received) -> bool:
    return _status(email, name) == "FAIL"


def _spf(email: Received) -> bool:
    if _status(email, "spfVerdict") == "PASS":
        return False
    # DMARC may have passed through DKIM alone, which vouches for From:, not for the envelope
    # sender, who would get the bounce.
    return _status(email, "dmarcVerdict") != "PASS" or not _sender_is_author(email)


def _sender_is_author(email: Received) -> bool:
    # The whole address: at a mailbox provider an equal domain is not an equal person, and whoever
    # replays an email that the provider has signed chooses the envelope sender.
    authors = headers.values(email.fields, "from")
    return len(authors) == 1 and _only_address(authors[0]) == addresses.canonical(email.source)


def _only_address(value: str) -> str:
    """The address of a From: that says beyond doubt whose it is, canonical; else empty.

    The standard library's parser gives an address for almost anything, and its stack overflows on
    nested comments. Not taken: groups, comments, quoted local parts, several addresses.
    """
    match = _AUTHOR.fullmatch(value.strip())
    return addresses.canonical(match[1] or match[2]) if match else ""


def _status(email: Received, name: str) -> str:
    return str(email.receipt.get(name, {}).get("status", ""))


_GUARDS = (
    ("null-sender", _null_sender),
    ("invalid-sender", _invalid_sender),
    ("own-sender", _own_sender),
    ("daemon-sender", _daemon_sender),
    ("auto-submitted", _auto_submitted),
    ("mailing-list", _mailing_list),
    ("bulk", _bulk),
    ("report", _report),
    ("virus", lambda email: _failed("virusVerdict", email)),
    ("spam", lambda email: _failed("spamVerdict", email)),
    ("dmarc", lambda email: _failed("dmarcVerdict", email)),
    ("spf", _spf),
    ("loop", _loop),
    ("too-old", _too_old),
)
