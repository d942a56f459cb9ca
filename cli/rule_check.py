"""What is wrong, or merely odd, with the rules of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ses_mail import addresses, outcomes, route_table, routing

from . import rules
from .hints import hint
from .tokens import Tokens

DEFECT, NOTE = "defect", "note"

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A defect makes mail go elsewhere than the rule says; a note is for reading."""

    pattern: str  # empty: it is about the table as a whole
    severity: str
    problem: str
    advice: str


def findings(
    items: Iterable[Item], received: Sequence[str] | None, tokens: Tokens | None
) -> list[Finding]:
    """Everything worth saying of the table's items.

    `received` are the receipt rule's recipients, `tokens` the credentials; None if unknown.
    """
    found: list[Finding] = []
    read: dict[str, Item] = {}
    for item in items:
        if route_table.is_rule(item):
            read[route_table.pattern(item)] = item
        else:
            found.append(_never_read(item))
    enabled: dict[str, routing.Rule] = {}
    for pattern, item in sorted(read.items(), key=lambda entry: rules.by_domain(entry[1])):
        found += _of_item(pattern, item)
        rule = None if rules.defect_of(item) else routing.parse_rule(pattern, item)
        if rule:
            enabled[pattern] = rule
            found += _of_rule(rule, read, received)
    found += _of_one_mailbox(enabled.values())
    found += _of_mailboxes(enabled.values(), tokens)
    found += _of_all(enabled, received)
    return found


def _never_read(item: Item) -> Finding:
    return Finding(
        str(item["PK"]),
        DEFECT,
        f"never read: its key is PK {item['PK']}, SK {item['SK']}",
        f"enter it with {hint('routes', 'add')} (the router reads SK {route_table.SORT_KEY} under "
        "PK ROUTE#…) and delete this item",
    )


def _of_item(pattern: str, item: Item) -> Iterator[Finding]:
    if defect := rules.defect_of(item):
        if item.get("enabled", True) is False:
            advice = "fix it before it is enabled, or remove it"
            yield Finding(pattern, NOTE, f"disabled, and {defect}", advice)
        else:
            advice = f"fix it: {hint('routes', 'update', pattern)}, or remove and add"
            yield Finding(pattern, DEFECT, defect, advice)
    if item.get("recipient", pattern) != pattern:
        yield Finding(
            pattern,
            DEFECT,
            f"its recipient says {item['recipient']}, but its key, which counts, says {pattern}",
            "remove it and add the one that is meant",
        )
    if "recipient" not in item or item.get("entity_type") != "ROUTE":
        yield Finding(
            pattern,
            NOTE,
            "lacks recipient or entity_type ROUTE: it works, but the runbook's scan misses it",
            "remove it and add it again",
        )


def _of_rule(
    rule: routing.Rule, read: Mapping[str, Item], received: Sequence[str] | None
) -> Iterator[Finding]:
    if len(rule.targets) > routing.MAX_DELIVERIES:
        yield Finding(
            rule.pattern,
            DEFECT,
            f"{len(rule.targets)} targets: an email has at most {routing.MAX_DELIVERIES} "
            "deliveries, the rest is parked",
            "have fewer targets",
        )
    if received is not None and not is_received(rule.pattern, received):
        yield Finding(
            rule.pattern,
            DEFECT,
            f"dead: SES takes mail for {', '.join(received)} only",
            "deploy with the domain in Domains, or remove the rule",
        )
    if rule.pattern == "*":
        return
    local, domain = addresses.split(rule.pattern)
    others = {pattern: item for pattern, item in read.items() if pattern != rule.pattern}
    # Any address that only the domain's wildcard matches, if that is what the rule is.
    without = routing.decide(rule.pattern if local != "*" else f'"no such"@{domain}', others)
    if without.action == routing.PARK or without.matched_rule == outcomes.NO_MATCH:
        return
    if (without.action, set(without.targets)) == (rule.action, set(rule.targets)):
        yield Finding(
            rule.pattern,
            NOTE,
            f"redundant: {without.matched_rule} does the same",
            "keep it if that rule may change, or remove it",
        )
    elif addresses.without_tag(rule.pattern) == without.matched_rule:
        yield Finding(
            rule.pattern,
            NOTE,
            f"mail with this tag goes another way than {without.matched_rule}",
            "nothing, if that is meant",
        )


def is_received(pattern: str, received: Sequence[str]) -> bool:
    """Whether the receipt rule lets any address through that the pattern matches.

    A recipient of a receipt rule is a domain, `.domain` for its subdomains, or an address; no
    recipient at all lets every verified domain through, and so does the embedded cloud's `*`.
    """
    if pattern == "*" or not received or "*" in received:
        return True
    local, domain = addresses.split(pattern)
    for recipient in map(addresses.canonical, received):
        if recipient.startswith("."):
            if domain.endswith(recipient):
                return True
        elif "@" in recipient:
            exact = addresses.without_tag(pattern) == addresses.without_tag(recipient)
            if exact or (local == "*" and domain == addresses.split(recipient)[1]):
                return True
        elif domain == recipient:
            return True
    return False


def _of_one_mailbox(enabled: Iterable[routing.Rule]) -> Iterator[Finding]:
    """What Gmail takes for one mailbox and we for two: each gets a copy, and a token of its own.

    Gmail Help, "Dots don't matter in Gmail addresses"; `googlemail.com` is gmail.com's older name.
    """
    spelt: dict[str, str] = {}  # Google's own form → the first that was met
    for rule in enabled:
        for target in rule.targets:
            first = spelt.setdefault(_as_gmail(target), target)
            if target != first:
                yield Finding(
                    rule.pattern,
                    NOTE,
                    f"{target} and {first} are one mailbox to Gmail, and an email for both comes "
                    "twice",
                    f"write it everywhere as {first}",
                )


def _as_gmail(mailbox: str) -> str:
    local, domain = addresses.split(mailbox)
    if domain not in ("gmail.com", "googlemail.com"):
        return mailbox
    return f"{local.replace('.', '')}@gmail.com"


def _of_mailboxes(enabled: Iterable[routing.Rule], tokens: Tokens | None) -> Iterator[Finding]:
    if tokens is None:
        return
    served: dict[str, str] = {}  # by the default: mailbox → the first pattern that leads there
    for rule in enabled:
        for mailbox in rule.targets:
            if tokens.own(mailbox) in tokens.parameters:
                continue
            if tokens.has_default:
                served.setdefault(mailbox, rule.pattern)
                continue
            yield Finding(
                rule.pattern,
                DEFECT,
                f"no credentials for {mailbox}: neither {tokens.own(mailbox)} nor "
                f"{tokens.default} exists",
                _set_token(mailbox),
            )
    if len(served) > 1:
        for mailbox, pattern in served.items():
            yield Finding(
                pattern,
                NOTE,
                f"{mailbox} is one of {len(served)} mailboxes that rely on {tokens.default}, which "
                "serves more than one only if it is a service account",
                f"else {_set_token(mailbox)}",
            )


def _set_token(mailbox: str) -> str:
    return hint("token", "set", "--mailbox", mailbox, "--file", "token.json")


def _of_all(
    enabled: Mapping[str, routing.Rule], received: Sequence[str] | None
) -> Iterator[Finding]:
    if "*" not in enabled:
        yield Finding(
            "*",
            NOTE,
            "there is no such rule: mail to unknown addresses is stored, with an alarm",
            f"{hint('routes', 'add', '*', 'bounce')}, if strangers should be told",
        )
    elif received and all(_is_covered(recipient, enabled) for recipient in received):
        yield Finding(
            "*",
            NOTE,
            "shadowed: every domain that SES takes mail for has a wildcard of its own",
            "nothing, if that is meant",
        )


def _is_covered(recipient: str, enabled: Mapping[str, routing.Rule]) -> bool:
    canonical = addresses.canonical(recipient)
    return f"*@{addresses.split(canonical)[1] or canonical}" in enabled
