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
NO_RULE = "none"
INVOKE = "lambda:Invoke"
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


@dataclass(frozen=True)
class Decision:
    """What the router has to say of one recipient; `targets` are mailboxes."""

    action: str
    targets: tuple[str, ...]
    matched_rule: str


def decision(
    email: Email, recipient: str, rules: Mapping[str, Rule], ignore_verdicts: bool
) -> Decision:
    """How one recipient is routed under these rules."""
    if email.verdicts.get("virus") == "FAIL" and not ignore_verdicts:
        return Decision(DROP, (), NO_RULE)
    if email.loop:
        return Decision(STORE, (), NO_RULE)
    rule = rule_for(recipient, rules)
    if rule is None:
        return Decision(STORE, (), NO_RULE)
    if rule.action not in (FORWARD, BOUNCE, STORE, DROP):
        return Decision(PARK, (), rule.pattern)
    targets = tuple(dict.fromkeys(map(mailbox, rule.targets))) if rule.action == FORWARD else ()
    return Decision(rule.action, targets, rule.pattern)


def together(
    email: Email,
    recipients: Sequence[str],
    rules: Mapping[str, Rule],
    ignore_verdicts: bool,
    action: str,
    target: str = "",
) -> tuple[str, ...]:
    """The recipients that one delivery serves, in the envelope's order: all that lead to this
    mailbox, or all that are bounced."""
    decided = [(r, decision(email, r, rules, ignore_verdicts)) for r in recipients]
    return tuple(
        recipient
        for recipient, made in decided
        if made.action == action and (target in made.targets if target else True)
    )


# -- what a fault excuses --------------------------------------------------------------------------

# The client got no answer, whatever the server did.
_SENT_UNANSWERED = (faults.RESET_AFTER, faults.TIMEOUT_AFTER, faults.KILL_AFTER)
_UNSENT_UNANSWERED = (
    *(faults.ERROR, faults.RESET_BEFORE, faults.TIMEOUT_BEFORE, faults.KILL_BEFORE),
)
# The write was not made: the process died before, or the client's own retries failed too.
_UNWRITTEN = (
    *(faults.THROTTLE, faults.ERROR, faults.REJECT),
    *(faults.RESET_BEFORE, faults.TIMEOUT_BEFORE),
)
_GONE_AFTER_MARK = ("sending", faults.KILL_AFTER)
# What can make an attempt of a step fail.
_FAILING = (
    *_UNWRITTEN,
    *faults.KILLED,
    *(faults.RESET_AFTER, faults.RESET_MID, faults.TIMEOUT_AFTER, faults.TIMED_OUT),
)


def may_be_in_doubt(message_id: str, recipient: str, fired: Iterable[Fired], sent: bool) -> bool:
    """Whether a fault struck the bounce of an email between its mark `sending` and the record of
    SES's answer, so that the functions cannot know what SES does: whether it was `sent`."""
    return any(
        fault.key == message_id and "bouncer" in fault.by and _hides(fault, recipient.lower(), sent)
        for fault in fired
    )


def _hides(fault: Fired, recipient: str, sent: bool) -> bool:
    state, *recipients = fault.about.lower().split() or [""]
    if fault.kind == faults.TIMED_OUT:
        return recipient in (state, *recipients)
    if recipient not in recipients:
        return False
    unwritten = fault.kind == faults.KILL_BEFORE or (fault.whole and fault.kind in _UNWRITTEN)
    if state == "sendbounce":
        return fault.kind in (_SENT_UNANSWERED if sent else _UNSENT_UNANSWERED)
    if state == "bounced":
        return sent and unwritten
    if sent:
        return False
    # The mark is made, and the process gone; or SES refused, and the mark could not be taken back.
    return unwritten if state == "given-back" else (state, fault.kind) == _GONE_AFTER_MARK


def failures(message_id: str, function: str, target: str, fired: Iterable[Fired]) -> list[Fired]:
    """The faults that can have made attempts of this function fail for the email (and mailbox)."""
    return [
        fault
        for fault in fired
        if fault.key == message_id
        and fault.kind in _FAILING
        and function in (f"{fault.by} {fault.about}" if fault.site == INVOKE else fault.by)
        and (not target or not fault.about or target in fault.about.split())
    ]
