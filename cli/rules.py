"""Routing rules as people enter, read and keep them: validated by the router's own code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ses_mail import addresses, route_table, routing
from ses_mail.errors import InvalidRoutingRuleError

from .errors import InvalidInputError

HISTORY_LENGTH = 20
# What a file may say of a rule, and whether it must.
_FILE_FIELDS = {"pattern": True, "action": True, "targets": False, "enabled": False} | {
    "description": False
}


@dataclass(frozen=True)
class Wanted:
    """A valid rule: canonical pattern, and mailboxes as targets."""

    pattern: str
    action: str
    targets: tuple[str, ...] = ()
    enabled: bool = True
    description: str = ""

    def attributes(self) -> dict[str, Any]:
        """The attributes of the table's item that make the rule; one target is a text, as in the
        runbook's commands."""
        return {
            **route_table.key(self.pattern),
            "entity_type": "ROUTE",
            "recipient": self.pattern,
            "action": self.action,
            "target": list(self.targets) if len(self.targets) > 1 else "".join(self.targets),
            "enabled": self.enabled,
            "description": self.description,
        }

    def as_line(self) -> str:
        """The rule as a line of an exported file."""
        fields = {
            "pattern": self.pattern,
            "action": self.action,
            "targets": self.targets,
            "enabled": self.enabled,
            "description": self.description,
        }
        return json.dumps(fields, ensure_ascii=False)


def canonical_pattern(text: str) -> str:
    """The pattern in the one form that the router looks up: lower case, A-labels.

    Raises InvalidInputError for what could match nothing.
    """
    if text == "*":
        return text
    wildcard = text.startswith("*@")
    canonical = addresses.canonical(f"any{text[1:]}" if wildcard else text)
    if text != text.strip() or not addresses.is_address(canonical) or not canonical.isprintable():
        raise InvalidInputError(
            f"{text!r} is not a pattern: give an address, *@ and a domain, or * alone"
        )
    local, domain = addresses.split(canonical)
    if not domain.isascii():
        raise InvalidInputError(f"{text!r}: {domain} is not a domain that DNS could have")
    if "*" in local and not local.startswith('"'):
        raise InvalidInputError(f"{text!r}: * stands for a whole address or a whole local part")
    return f"*@{domain}" if wildcard else canonical


def wanted(
    pattern: str,
    action: str,
    targets: Iterable[str] = (),
    enabled: bool = True,
    description: str = "",
) -> Wanted:
    """A rule from what somebody entered; raises InvalidInputError."""
    canonical = canonical_pattern(pattern)
    listed = list(targets)
    if action not in routing.WITH_TARGETS and listed:
        raise InvalidInputError(f"{canonical}: {action} takes no target")
    if action in routing.WITH_TARGETS and not listed:
        raise InvalidInputError(f"{canonical}: {action} needs at least one target")
    if len(listed) > routing.MAX_DELIVERIES:
        raise InvalidInputError(
            f"{canonical}: {len(listed)} targets, an email can have {routing.MAX_DELIVERIES}"
        )
    try:
        rule = routing.parse_rule(canonical, {"action": action, "target": listed})
    except InvalidRoutingRuleError as error:
        raise InvalidInputError(str(error)) from None
    assert rule  # noqa: S101 (only a disabled rule is none)
    return Wanted(canonical, action, rule.targets, enabled, description)


def from_item(item: Mapping[str, Any]) -> Wanted:
    """The rule that a table item holds, disabled or not; raises InvalidInputError if it is
    malformed or could never match."""
    pattern, enabled = route_table.pattern(item), item.get("enabled", True)
    if defect := defect_of(item):
        raise InvalidInputError(defect)
    action = str(item["action"])
    targets = _listed(item.get("target")) if action in routing.WITH_TARGETS else []
    description = item.get("description")
    # It means nothing to the router, so a person with the console may have put anything there.
    text = description if isinstance(description, str) else ""
    return wanted(pattern, action, targets, enabled, text)


def defect_of(item: Mapping[str, Any]) -> str:
    """Why the rule cannot be obeyed, or could not if it were enabled; empty if it can."""
    pattern = route_table.pattern(item)
    try:
        canonical = canonical_pattern(pattern)
        if canonical != pattern:
            return f"rule {pattern}: never matches, since addresses are looked up as {canonical}"
        if item.get("enabled") is False:
            item = {**item, "enabled": True}
        routing.parse_rule(pattern, item)
    except InvalidInputError as error:
        return f"rule {pattern}: never matches: {error}"
    except InvalidRoutingRuleError as error:
        return str(error)
    return ""


def changed(
    item: Mapping[str, Any],
    action: str | None,
    targets: Sequence[str],
    description: str | None,
) -> dict[str, Any]:
    """The attributes that a change writes, whatever the item holds; what is not given stays.

    Raises InvalidInputError for what cannot be meant, or if a rule that works no longer would. One
    that was malformed may stay so (see defect_of), and is nearer to a rule.
    """
    pattern, before = route_table.pattern(item), item.get("action")
    if canonical_pattern(pattern) != pattern:
        raise InvalidInputError(
            f"{pattern} never matches: add {canonical_pattern(pattern)} and remove this one"
        )
    if action is not None and action not in routing.ACTIONS:
        raise InvalidInputError(
            f"{pattern}: unknown action {action!r}, expected one of {', '.join(routing.ACTIONS)}"
        )
    after = before if action is None else action
    given: dict[str, Any] = {"entity_type": "ROUTE", "recipient": pattern}
    if action is not None:
        given["action"] = action
    if description is not None:
        given["description"] = description
    if targets:
        # Under an action that is malformed too, they wait for the right one.
        kept = wanted(pattern, after if after in routing.ACTIONS else routing.FORWARD, targets)
        given["target"] = kept.attributes()["target"]
    elif action is not None and _is_idle(action):
        given["target"] = ""
    elif action in routing.WITH_TARGETS and _is_idle(before):
        raise InvalidInputError(f"{pattern}: {action} needs at least one target")
    if not defect_of(item) and (defect := defect_of({**item, **given})):
        raise InvalidInputError(defect)
    return given


def _is_idle(action: Any) -> bool:
    """Whether the targets of such a rule do nothing, and were never meant to."""
    return action in routing.ACTIONS and action not in routing.WITH_TARGETS


def described(item: Mapping[str, Any]) -> dict[str, Any]:
    """A table item for people and machines, malformed or not."""
    return {
        "pattern": route_table.pattern(item),
        "action": item.get("action"),
        "targets": _listed(item.get("target")),
        "enabled": item.get("enabled", True),
        "description": item.get("description", ""),
        "created_at": item.get("created_at"),
        "updated_at": item.get("updated_at"),
        "updated_by": item.get("updated_by"),
        "problem": defect_of(item) or None,
    }


def _listed(target: Any) -> list[Any]:
    if isinstance(target, set):
        return sorted(target, key=repr)
    if isinstance(target, list):
        return target
    return [target] if target else []


def by_domain(item: Mapping[str, Any]) -> tuple[str, bool, str]:
    """Sort key: domain by domain, its wildcard last, and `*` after all."""
    pattern = route_table.pattern(item)
    local, domain = addresses.split(pattern)
    return ("\U0010ffff" if pattern == "*" else domain, local == "*", local)


# -- changes ---------------------------------------------------------------------------------------


def revised(
    before: Mapping[str, Any] | None, attributes: Mapping[str, Any], at: str, by: str
) -> dict[str, Any]:
    """The item after a change, with who made it and when; what it does not know it keeps."""
    old = dict(before or {"created_at": at})
    history = old.get("history")
    entry = {"at": at, "by": by, "change": difference(before, attributes)}
    return {
        **old,
        **attributes,
        "updated_at": at,
        "updated_by": by,
        # A person with the console may have put anything there.
        "history": [*(history if isinstance(history, list) else []), entry][-HISTORY_LENGTH:],
    }


def difference(before: Mapping[str, Any] | None, attributes: Mapping[str, Any]) -> str:
    """What a change does, in words; empty if it does nothing."""
    if before is None:
        return "added"
    after = {**before, **attributes}
    changes = []
    if before.get("action") != after.get("action"):
        changes.append(f"action {plain(before.get('action'))} → {plain(after.get('action'))}")
    if _mailboxes(before) != _mailboxes(after):
        changes.append(f"target {_mailboxes(before) or 'none'} → {_mailboxes(after) or 'none'}")
    if before.get("enabled", True) is not after.get("enabled", True):
        changes.append("enabled" if after.get("enabled", True) else "disabled")
    if before.get("description", "") != after.get("description", ""):
        changes.append("description")
    return ", ".join(changes)


def _mailboxes(item: Mapping[str, Any]) -> str:
    if _is_idle(item.get("action")):
        return ""  # whatever stands there does nothing
    targets = map(plain, _listed(item.get("target")))
    return ", ".join(sorted({addresses.mailbox(target) for target in targets}))


def plain(value: Any) -> str:
    """A value that a person may have put into the table, as text: bytes have none of their own."""
    return value if isinstance(value, str) else "none" if value is None else repr(value)


# -- files -----------------------------------------------------------------------------------------


def from_lines(lines: Iterable[str]) -> list[Wanted]:
    """The rules of a file with one JSON object a line.

    Raises InvalidInputError that names every bad line.
    """
    rules: list[Wanted] = []
    seen: dict[str, int] = {}
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rule = _from_line(line)
            first = seen.setdefault(rule.pattern, number)
            if first != number:
                raise InvalidInputError(f"{rule.pattern} again, first in line {first}")
            rules.append(rule)
        except InvalidInputError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        raise InvalidInputError("\n".join(["nothing was changed:", *bad]))
    if not rules:
        raise InvalidInputError("there is no rule in it; nothing was changed")
    return rules


def _from_line(line: str) -> Wanted:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInputError("no JSON") from None
    if not isinstance(fields, dict):
        raise InvalidInputError("no JSON object")
    unknown = sorted(fields.keys() - _FILE_FIELDS.keys())
    missing = [name for name, needed in _FILE_FIELDS.items() if needed and name not in fields]
    if unknown or missing:
        what = [f"unknown {', '.join(unknown)}"] if unknown else []
        what += [f"{', '.join(missing)} missing"] if missing else []
        raise InvalidInputError("; ".join(what))
    for name, kind in {"pattern": str, "action": str, "enabled": bool, "description": str}.items():
        if name in fields and not isinstance(fields[name], kind):
            raise InvalidInputError(f"{name} {fields[name]!r} is not {_KINDS[kind]}")
    targets = fields.get("targets", [])
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InvalidInputError(f"targets {targets!r} is not a list of addresses")
    return wanted(**fields)


_KINDS = {str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Step:
    """One write that brings the table nearer to a file; without `rule` the item is removed."""

    pattern: str
    before: Mapping[str, Any] | None
    rule: Wanted | None
    change: str


def plan(items: Iterable[Mapping[str, Any]], rules: Sequence[Wanted], replace: bool) -> list[Step]:
    """What an import has to write: additions and changes first, so that no address is ever without
    its old or its new rule."""
    held = {route_table.pattern(item): item for item in items}
    steps = []
    for rule in rules:
        before = held.pop(rule.pattern, None)
        if change := difference(before, rule.attributes()):
            steps.append(Step(rule.pattern, before, rule, change))
    if replace:
        steps += [Step(pattern, held[pattern], None, "removed") for pattern in sorted(held)]
    return steps


# -- why an address goes where it goes -------------------------------------------------------------


def explained(recipient: str, rules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The router's decision, and what it found under each key in the order of the lookup."""
    decision = routing.decide(recipient, rules)
    tried = []
    decided = False
    for pattern in addresses.patterns(recipient):
        found = _found(pattern, rules)
        if found in ("matches", "malformed") and not decided:
            decided = True
        elif decided and found != "absent":
            found = "not reached"
        tried.append({"pattern": pattern, "found": found})
    return {
        "address": recipient,
        "action": decision.action,
        "targets": list(decision.targets),
        "matched_rule": decision.matched_rule,
        "reason": decision.reason,
        "tried": tried,
    }


def _found(pattern: str, rules: Mapping[str, Mapping[str, Any]]) -> str:
    if pattern not in rules:
        return "absent"
    try:
        return "matches" if routing.parse_rule(pattern, rules[pattern]) else "disabled"
    except InvalidRoutingRuleError:
        return "malformed"
