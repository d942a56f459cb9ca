"""Deciding where an email goes: rules, lookup order, and what is delivered together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ses_mail import addresses, outcomes
from ses_mail.errors import InvalidRoutingRuleError
from ses_mail.payloads import DeliveryItem

FORWARD, BOUNCE, STORE, DROP, PARK = "forward-to-gmail", "bounce", "store", "drop", "park"
ACTIONS = (FORWARD, BOUNCE, STORE, DROP)
# Whose rules name targets.
WITH_TARGETS = (FORWARD,)

# An inline Map runs 40 iterations at a time and a waiting retry keeps its place: what is quick
# goes first.
_ORDER = (STORE, DROP, PARK, BOUNCE, FORWARD)
MAX_DELIVERIES = 100
# The router's result, with every recipient once per delivery, may have 256 KiB as a state.
_MAX_TEXT = 100 * 1024
_MAX_LIST = 1000


@dataclass(frozen=True)
class Rule:
    """A valid routing rule; targets are mailboxes and empty unless it forwards."""

    pattern: str
    action: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one recipient and why.

    action is one of ACTIONS, or PARK for a malformed rule, whose reason is then the defect.
    """

    recipient: str
    action: str
    matched_rule: str
    reason: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Recipients that are served together: one copy to a mailbox, or one bounce."""

    action: str
    target: str
    recipients: tuple[str, ...]
    matched_rule: str
    reason: str

    def as_state(self) -> DeliveryItem:
        """The delivery as an item of the state machine's Map."""
        item: DeliveryItem = {
            "action": self.action,
            "target": self.target,
            "recipients": list(self.recipients),
            "matchedRule": self.matched_rule,
            "reason": self.reason,
        }
        if self.action == PARK:
            item["failure"] = {"Error": InvalidRoutingRuleError.__name__, "Cause": self.reason}
        return item


def parse_rule(pattern: str, item: Mapping[str, Any]) -> Rule | None:
    """A rule from its table item (plain Python values); None if it is disabled.

    Raises InvalidRoutingRuleError, whose text says what to fix.
    """
    enabled = item.get("enabled", True)
    if not isinstance(enabled, bool):
        raise InvalidRoutingRuleError(f"rule {pattern}: enabled is {enabled!r}, not true or false")
    if not enabled:
        return None
    action = item.get("action")
    if action not in ACTIONS:
        raise InvalidRoutingRuleError(
            f"rule {pattern}: unknown action {action!r}, expected one of {', '.join(ACTIONS)}"
        )
    return Rule(pattern, action, _targets(pattern, item) if action in WITH_TARGETS else ())


def _targets(pattern: str, item: Mapping[str, Any]) -> tuple[str, ...]:
    target = item.get("target")
    wanted = [target] if isinstance(target, str) else target
    if not isinstance(wanted, list | set | tuple) or not wanted:
        raise InvalidRoutingRuleError(
            f"rule {pattern}: target {target!r} is neither an address nor a list of them"
        )
    for address in wanted:
        if not isinstance(address, str) or not addresses.is_address(address.strip()):
            raise InvalidRoutingRuleError(f"rule {pattern}: target {address!r} is not an address")
    # A string set comes in any order, and a list may name a mailbox twice.
    mailboxes = [addresses.mailbox(address) for address in wanted]
    return tuple(sorted(set(mailboxes)) if isinstance(wanted, set) else dict.fromkeys(mailboxes))


def decide(recipient: str, rules: Mapping[str, Mapping[str, Any]]) -> Decision:
    """The first enabled rule that matches, from the table items under their patterns."""
    for pattern in addresses.patterns(recipient):
        if pattern not in rules:
            continue
        try:
            rule = parse_rule(pattern, rules[pattern])
        except InvalidRoutingRuleError as error:
            return Decision(
                recipient=recipient, action=PARK, matched_rule=pattern, reason=str(error)
            )
        if rule:
            return Decision(
                recipient=recipient,
                action=rule.action,
                matched_rule=pattern,
                reason=_match_kind(pattern),
                targets=rule.targets,
            )
    return _unmatched(recipient, STORE, outcomes.NO_RULE)


def _match_kind(pattern: str) -> str:
    if pattern == "*":
        return "global wildcard"
    return "domain wildcard" if pattern.startswith("*@") else "address"


def decide_unsafe(recipient: str, verdict: str) -> Decision:
    """What an email gets that the state machine found unsafe: verdict is `virus` or `loop`."""
    action = DROP if verdict == outcomes.VIRUS else STORE
    return _unmatched(recipient, action, verdict)


def decide_replayed(recipient: str, to: str) -> Decision:
    """What an email gets that an operator replays to a mailbox, whatever the rules say."""
    return _unmatched(recipient, FORWARD, outcomes.REPLAYED, (to,))


def _unmatched(recipient: str, action: str, reason: str, targets: tuple[str, ...] = ()) -> Decision:
    return Decision(
        recipient=recipient,
        action=action,
        matched_rule=outcomes.NO_MATCH,
        reason=reason,
        targets=targets,
    )


def group(decisions: Iterable[Decision]) -> list[Delivery]:
    """Deliveries in the order in which the Map takes them.

    One per mailbox, one bounce, one per reason for what is stored, dropped or parked. What exceeds
    MAX_DELIVERIES, or the size of a state, is parked together.
    """
    groups: dict[tuple[str, str, str], list[Decision]] = {}
    for decision in decisions:
        for target in decision.targets or ("",):
            together = decision.action in (BOUNCE, *WITH_TARGETS)
            key = (decision.action, target, "" if together else decision.reason)
            groups.setdefault(key, []).append(decision)
    ordered = sorted(groups.items(), key=lambda entry: _ORDER.index(entry[0][0]))
    deliveries = [
        Delivery(
            action=action,
            target=target,
            recipients=_unique(d.recipient for d in made),
            matched_rule=_listed(d.matched_rule for d in made),
            reason=_listed(d.reason for d in made),
        )
        for (action, target, _), made in ordered
    ]
    return _limited(deliveries)


def _limited(deliveries: list[Delivery]) -> list[Delivery]:
    text = 0
    for index, delivery in enumerate(deliveries):
        text += sum(len(recipient.encode()) + 4 for recipient in delivery.recipients)
        if index >= MAX_DELIVERIES or text > _MAX_TEXT:
            rest = deliveries[index:]
            parked = Delivery(
                action=PARK,
                target="",
                recipients=_unique(r for d in rest for r in d.recipients),
                matched_rule=_listed(d.matched_rule for d in rest),
                reason=f"{len(deliveries)} deliveries of one email, of which {index} fit: "
                "have fewer targets or recipients",
            )
            return [*deliveries[:index], parked]
    return deliveries


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _listed(texts: Iterable[str]) -> str:
    # Cut, because a dead letter has to hold it.
    return ", ".join(_unique(texts))[:_MAX_LIST]
