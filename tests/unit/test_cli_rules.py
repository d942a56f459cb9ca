"""Rules as people enter them: what is refused, what a change is, what a file holds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ses_mail import addresses, routing

from cli import rules
from cli.errors import InvalidInputError

ANNA = "anna@gmail.com"
KEY = {"PK": "ROUTE#hi@example.com", "SK": "RULE#v1"}
ITEM = {
    **KEY,
    "entity_type": "ROUTE",
    "recipient": "hi@example.com",
    "action": "forward-to-gmail",
    "target": ANNA,
    "enabled": True,
    "description": "",
}


@pytest.mark.parametrize(
    ("entered", "pattern"),
    [
        ("*", "*"),
        ("Anna@Example.COM", "anna@example.com"),
        ("anna+News@example.com", "anna+news@example.com"),
        ("*@Bücher.example", "*@xn--bcher-kva.example"),
        ("anna@bücher.example", "anna@xn--bcher-kva.example"),
        ('"a b"@example.com', '"a b"@example.com'),
        ('"a@b"@example.com', '"a@b"@example.com'),
        ('"*"@example.com', '"*"@example.com'),
        ("*@example.com.", "*@example.com"),
    ],
)
def test_patterns_become_what_the_router_looks_up(entered: str, pattern: str) -> None:
    assert rules.canonical_pattern(entered) == pattern


@pytest.mark.parametrize(
    ("entered", "defect"),
    [
        ("", "is not a pattern"),
        ("*@", "is not a pattern"),
        ("@example.com", "is not a pattern"),
        ("anna", "is not a pattern"),
        ("**", "is not a pattern"),
        (" anna@example.com", "is not a pattern"),
        ("anna@example.com\n", "is not a pattern"),
        ("an na@example.com", "is not a pattern"),
        ("anna@exa mple.com", "is not a pattern"),
        ("*@localhost", "is not a pattern"),
        ("*@*.example.com", "is not a pattern"),
        ("anna,ben@example.com", "is not a pattern"),
        ("anna@ex\x00ample.com", "is not a pattern"),
        ("sales*@example.com", "stands for a whole"),
        ("anna@-ü-.example", "not a domain that DNS could have"),
    ],
)
def test_patterns_that_match_nothing_are_refused(entered: str, defect: str) -> None:
    with pytest.raises(InvalidInputError, match=defect):
        rules.canonical_pattern(entered)


@given(st.from_regex(r"[A-Za-z0-9.+*\"@ü -]{0,12}@[A-Za-z0-9.ßü*-]{0,12}", fullmatch=True))
def test_an_accepted_pattern_is_one_that_an_address_has(entered: str) -> None:
    try:
        pattern = rules.canonical_pattern(entered)
    except InvalidInputError:
        return
    assert rules.canonical_pattern(pattern) == pattern
    recipient = f"any{pattern[1:]}" if pattern.startswith("*@") else pattern
    assert pattern in addresses.patterns(recipient)


@pytest.mark.parametrize(
    ("action", "targets", "defect"),
    [
        ("forward-to-gmail", [], "needs at least one target"),
        ("forward-to-gmail", ["anna"], "target 'anna' is not an address"),
        ("forward-to-gmail", [ANNA, ""], "target '' is not an address"),
        ("bounce", [ANNA], "bounce takes no target"),
        ("drop", [""], "drop takes no target"),
        ("foward", [], "unknown action 'foward'"),
        ("forward-to-gmail", [f"m{n}@gmail.com" for n in range(101)], "101 targets"),
    ],
)
def test_rules_that_are_refused(action: str, targets: list[str], defect: str) -> None:
    with pytest.raises(InvalidInputError, match=defect):
        rules.wanted("hi@example.com", action, targets)


def test_targets_are_mailboxes_each_once() -> None:
    rule = rules.wanted("*", "forward-to-gmail", ["Anna+x@Gmail.com", ANNA, "ben@gmail.com"])
    assert rule.targets == (ANNA, "ben@gmail.com")
    assert rule.attributes()["target"] == [ANNA, "ben@gmail.com"]


@pytest.mark.parametrize("targets", [[], [ANNA], [ANNA, "ben@gmail.com"]])
def test_an_item_is_read_as_it_was_written(targets: list[str]) -> None:
    action = "forward-to-gmail" if targets else "store"
    rule = rules.wanted("hi@example.com", action, targets, False, "Ünsere")
    assert rules.from_item(rule.attributes()) == rule
    assert rules.from_lines([rule.as_line()]) == [rule]


@pytest.mark.parametrize(
    ("change", "defect"),
    [
        ({"action": "bounce", "target": ""}, ""),
        ({"target": {ANNA}}, ""),
        ({"enabled": False}, ""),
        ({"action": "foward"}, "unknown action"),
        ({"action": "foward", "enabled": False}, "unknown action"),
        ({"enabled": "true"}, "enabled is 'true'"),
        ({"target": ""}, "target"),
        ({"PK": "ROUTE#Hi@example.com"}, "looked up as hi@example.com"),
        ({"PK": "ROUTE#*@"}, "never matches"),
    ],
)
def test_defects_of_items(change: dict[str, Any], defect: str) -> None:
    found = rules.defect_of({**ITEM, **change})
    assert (defect in found) if defect else not found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"enabled": False}, "disabled"),
        ({"target": "Anna+x@gmail.com"}, ""),
        ({"target": [ANNA, "ben@gmail.com"]}, f"target {ANNA} → {ANNA}, ben@gmail.com"),
        (
            {"action": "store", "target": ""},
            f"action forward-to-gmail → store, target {ANNA} → none",
        ),
        ({"description": "x", "enabled": False}, "disabled, description"),
    ],
)
def test_what_a_change_is_called(change: dict[str, Any], said: str) -> None:
    assert rules.difference(ITEM, change) == said


def test_an_absent_field_means_what_the_router_takes_it_for() -> None:
    bare = {**KEY, "action": "bounce"}
    assert rules.difference(bare, rules.wanted("hi@example.com", "bounce").attributes()) == ""


def test_history_keeps_the_last_changes_and_what_is_unknown() -> None:
    item = rules.revised(None, ITEM, "t0", "anna")
    assert item["created_at"] == item["updated_at"] == "t0"
    for number in range(30):
        item = rules.revised(item, {"description": str(number)}, f"t{number}", "ben")
    assert len(item["history"]) == 20
    assert item["history"][-1] == {"at": "t29", "by": "ben", "change": "description"}
    assert (item["created_at"], item["updated_at"], item["updated_by"]) == ("t0", "t29", "ben")
    odd = rules.revised({**ITEM, "history": "?", "owner": "me"}, {"enabled": False}, "t", "b")
    assert odd["owner"] == "me"
    assert [entry["change"] for entry in odd["history"]] == ["disabled"]


def line(**fields: Any) -> str:
    return json.dumps({"pattern": "hi@example.com", "action": "bounce"} | fields)


@pytest.mark.parametrize(
    ("bad", "defect"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "no JSON"),
        ('{"pattern": "*"}', "action missing"),
        (line(target="x"), "unknown target"),
        (line(pattern=7), "pattern 7 is not text"),
        (line(enabled="true"), "enabled 'true' is not true or false"),
        (line(targets="a@x.example"), "is not a list of addresses"),
        (line(targets=[7]), "is not a list of addresses"),
        (line(pattern="*@"), "is not a pattern"),
        (line(pattern="A@example.com"), "a@example.com again, first in line 1"),
    ],
)
def test_bad_lines_are_named(bad: str, defect: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        rules.from_lines([line(pattern="a@example.com"), "", bad, line()])
    assert defect in str(raised.value)
    assert str(raised.value).startswith("nothing was changed:\nline 3: ")
    assert "line 4" not in str(raised.value)


def test_a_file_without_rules_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no rule in it"):
        rules.from_lines(["", "  "])


def test_plan() -> None:
    held = [
        rules.wanted(pattern, "store").attributes()
        for pattern in ("same@x.example", "other@x.example", "gone@x.example")
    ]
    wanted = [
        rules.wanted("same@x.example", "store"),
        rules.wanted("other@x.example", "drop"),
        rules.wanted("new@x.example", "bounce"),
    ]
    steps = rules.plan(held, wanted, replace=True)
    assert [(step.pattern, step.change) for step in steps] == [
        ("other@x.example", "action store → drop"),
        ("new@x.example", "added"),
        ("gone@x.example", "removed"),
    ]
    assert [step.pattern for step in rules.plan(held, wanted, replace=False)] == [
        "other@x.example",
        "new@x.example",
    ]
    assert rules.plan([rule.attributes() for rule in wanted], wanted, replace=True) == []


def test_what_was_found_under_each_key() -> None:
    table = {
        "anna@example.com": {"action": "store", "enabled": False},
        "*@example.com": {"action": "foward"},
        "*": {"action": "bounce"},
    }
    answer = rules.explained("Anna+x@example.com", table)
    assert [tuple(key.values()) for key in answer["tried"]] == [
        ("anna+x@example.com", "absent"),
        ("anna@example.com", "disabled"),
        ("*@example.com", "malformed"),
        ("*", "not reached"),
    ]
    assert (answer["action"], answer["matched_rule"]) == (routing.PARK, "*@example.com")
    assert rules.explained("x@other.example", table)["tried"][-1] == {
        "pattern": "*",
        "found": "matches",
    }
    nothing = rules.explained("x@other.example", {})
    assert (nothing["action"], nothing["reason"]) == ("store", "no rule")
