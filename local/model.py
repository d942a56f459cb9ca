"""What must become of every email, written from the contract alone.

Nothing here is imported from functions/: it is a second opinion on addresses, rules, verdicts and
bounces. It knows only what the soak sends, so it may be short where the product must be thorough,
and which faults struck.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from local import faults
from local.faults import Fired

FORWARD, BOUNCE, STORE, DROP, PARK = "forward-to-gmail", "bounce", "store", "drop", "park"
SUPPRESS = "suppress"
INBOX, SPAM = frozenset({"INBOX", "UNREAD"}), frozenset({"SPAM"})


@dataclass(frozen=True)
class Rule:
    """A routing rule as an operator puts it."""

    pattern: str
    action: str
    targets: tuple[str, ...] = ()
    enabled: bool = True


@dataclass(frozen=True)
class Email:
    """An email of the soak; `harm` names why it must not be bounced by what its headers say, and
    `loop` tells that it has too many Received lines. `repeat` is the nonce of a forced repetition
    for `repeated`, `released` tells that somebody released it although it has a virus."""

    number: int
    message_id: str
    sender: str
    recipients: tuple[str, ...]
    raw: bytes
    verdicts: Mapping[str, str]
    dmarc_policy: str
    harm: str = ""
    loop: bool = False
    released: bool = False
    repeat: str = ""
    repeated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Effect:
    """One thing that must become of one recipient; `where` is the mailbox of a forward, or the
    reason of a suppressed bounce."""

    kind: str
    recipient: str
    where: str = ""


def mailbox(target: str) -> str:
    local, _, domain = target.lower().rpartition("@")
    return f"{local.split('+')[0]}@{domain}"


def rule_for(recipient: str, rules: Mapping[str, Rule]) -> Rule | None:
    """The first enabled rule: exact, without tag, domain, everything."""
    address = recipient.lower()
    domain = address.rpartition("@")[2]
    for pattern in (address, mailbox(address), f"*@{domain}", "*"):
        rule = rules.get(pattern)
        if rule and rule.enabled:
            return rule
    return None


def labels(email: Email) -> frozenset[str]:
    """Gmail's labels of the email's copies."""
    if email.released:
        return INBOX
    spam = email.verdicts.get("spam") == "FAIL"
    forged = email.verdicts.get("dmarc") == "FAIL" and email.dmarc_policy in (
        "quarantine",
        "reject",
    )
    return SPAM if spam or forged else INBOX


def harm(email: Email, our_domains: Sequence[str]) -> str:
    """Why a bounce of this email would hurt a third party, or an empty string."""
    local, at, domain = email.sender.lower().rpartition("@")
    if not email.sender:
        return "null-sender"
    if not at:
        return "invalid-sender"
    if domain in our_domains:
        return "own-sender"
    if local in ("mailer-daemon", "postmaster"):
        return "daemon-sender"
    if email.harm:
        return email.harm
    for verdict in ("virus", "spam", "dmarc"):
        if email.verdicts.get(verdict) == "FAIL":
            return verdict
    # The soak's From: is the envelope sender's domain, so DMARC's PASS vouches for it.
    if email.verdicts.get("spf") != "PASS" and email.verdicts.get("dmarc") != "PASS":
        return "spf"
    return ""


def expected(
    email: Email, recipient: str, rules: Mapping[str, Rule], our_domains: Sequence[str]
) -> frozenset[Effect]:
    """Everything that must become of one recipient of the email under these rules."""
    if email.verdicts.get("virus") == "FAIL" and not email.released:
        return frozenset({Effect(DROP, recipient)})
    if email.loop:
        return frozenset({Effect(STORE, recipient)})
    rule = rule_for(recipient, rules)
    if rule is None:
        return frozenset({Effect(STORE, recipient)})
    if rule.action == FORWARD:
        return frozenset(Effect(FORWARD, recipient, mailbox(t)) for t in rule.targets)
    if rule.action == BOUNCE:
        reason = harm(email, our_domains)
        return frozenset({Effect(SUPPRESS if reason else BOUNCE, recipient, reason)})
    if rule.action in (STORE, DROP):
        return frozenset({Effect(rule.action, recipient)})
    return frozenset({Effect(PARK, recipient)})


# No answer, or one that does not tell whether the server did it; refusals and slow answers do.
_UNANSWERED = (
    *faults.KILLED,
    *(faults.ERROR, faults.RESET_BEFORE, faults.RESET_AFTER),
    *(faults.TIMEOUT_BEFORE, faults.TIMEOUT_AFTER),
)
# The write was not made: the process died before, or the client's own retries failed too.
_UNWRITTEN = (
    *(faults.THROTTLE, faults.ERROR, faults.REJECT),
    *(faults.RESET_BEFORE, faults.TIMEOUT_BEFORE),
)


def may_have_bounced(message_id: str, recipient: str, fired: Iterable[Fired]) -> bool:
    """Whether a fault struck the bounce of an email between its mark `sending` and the record of
    SES's answer, so that nobody can know whether it went out."""
    return any(
        fault.key == message_id and "bouncer" in fault.by and _hides(fault, recipient.lower())
        for fault in fired
    )


def _hides(fault: Fired, recipient: str) -> bool:
    state, *recipients = fault.about.split() or [""]
    if fault.kind == faults.TIMED_OUT:
        return recipient in (state, *recipients)
    if recipient not in recipients:
        return False
    if state == "SendBounce":
        return fault.kind in _UNANSWERED
    if state == "sending":
        return fault.kind == faults.KILL_AFTER
    if state in ("bounced", "given-back"):
        return fault.kind == faults.KILL_BEFORE or (fault.whole and fault.kind in _UNWRITTEN)
    return False
