"""What `routes check` says of a table."""

from collections.abc import Sequence
from typing import Any

import pytest

from cli import rule_check
from cli.tokens import Tokens

ANNA = "anna@gmail.com"
DEFAULT, PREFIX = "/ses-mail/test/gmail-token", "/ses-mail/test/gmail-tokens/"
NO_TOKENS = Tokens(DEFAULT, PREFIX, frozenset())


def item(pattern: str, action: Any = "bounce", target: Any = "", **more: Any) -> dict[str, Any]:
    return {
        "PK": f"ROUTE#{pattern}",
        "SK": "RULE#v1",
        "entity_type": "ROUTE",
        "recipient": pattern,
        "action": action,
        "target": target,
        "enabled": True,
        **more,
    }


STRANGERS = item("*")


def found(
    *items: dict[str, Any],
    received: Sequence[str] | None = ("example.com",),
    tokens: Tokens | None = None,
) -> list[tuple[str, str, str]]:
    every = rule_check.findings([STRANGERS, *items], received, tokens)
    return [(f.pattern, f.severity, f.problem) for f in every]


def test_a_good_table() -> None:
    good = [item("anna@example.com", "forward-to-gmail", ANNA), item("ben@example.com", "store")]
    everybody = Tokens(DEFAULT, PREFIX, frozenset({DEFAULT}))
    assert found(*good, tokens=everybody) == []


@pytest.mark.parametrize(
    ("odd", "pattern", "severity", "problem"),
    [
        (item("a@example.com", "foward"), "a@example.com", "defect", "unknown action 'foward'"),
        (item("a@example.com", enabled="no"), "a@example.com", "defect", "enabled is 'no'"),
        (
            item("a@example.com", "foward", enabled=False),
            "a@example.com",
            "note",
            "disabled, and rule a@example.com: unknown action",
        ),
        (item("A@example.com", "drop"), "A@example.com", "defect", "looked up as a@example.com"),
        (item("*@", "drop"), "*@", "defect", "never matches"),
        (item("sales*@example.com", "drop"), "sales*@example.com", "defect", "never matches"),
        (
            item("a@example.com", "drop", recipient="b@example.com"),
            "a@example.com",
            "defect",
            "its recipient says b@example.com",
        ),
        (
            {"PK": "ROUTE#a@example.com", "SK": "RULE#v1", "action": "drop"},
            "a@example.com",
            "note",
            "the runbook's scan misses it",
        ),
        (item("a@example.com", SK="RULE#v2"), "ROUTE#a@example.com", "defect", "never read"),
        (item("a@example.com", PK="a@example.com"), "a@example.com", "defect", "never read"),
        (item("a@other.example", "drop"), "a@other.example", "defect", "dead: SES takes mail for"),
        (item("*@sub.example.com", "drop"), "*@sub.example.com", "defect", "dead"),
        (item("a@example.com"), "a@example.com", "note", "redundant: * does the same"),
        (item("a+b@example.com"), "a+b@example.com", "note", "redundant: * does the same"),
        (
            item("a@example.com", "forward-to-gmail", [f"m{n}@gmail.com" for n in range(101)]),
            "a@example.com",
            "defect",
            "101 targets",
        ),
    ],
)
def test_one_odd_item(odd: dict[str, Any], pattern: str, severity: str, problem: str) -> None:
    ((where, what, said),) = found(odd)
    assert (where, what) == (pattern, severity)
    assert problem in said


def test_wildcards_and_tags_against_what_they_shadow() -> None:
    items = [
        item("*@example.com", "store"),
        item("a@example.com", "store"),
        item("b@example.com", "drop"),
        item("b+x@example.com", "store"),
        item("c@example.com", "store", enabled=False),
    ]
    assert found(*items, received=["example.com", "other.example"]) == [
        ("a@example.com", "note", "redundant: *@example.com does the same"),
        ("b+x@example.com", "note", "mail with this tag goes another way than b@example.com"),
    ]


def test_a_wildcard_that_does_what_all_others_get() -> None:
    assert found(item("*@example.com"), received=["example.com", "x.example"]) == [
        ("*@example.com", "note", "redundant: * does the same")
    ]


def test_without_a_rule_for_strangers() -> None:
    disabled = {**STRANGERS, "enabled": False}
    for items in ([], [disabled]):
        (finding,) = rule_check.findings(items, ["example.com"], NO_TOKENS)
        assert (finding.pattern, finding.severity) == ("*", "note")
        assert "there is no such rule" in finding.problem


def test_a_rule_for_strangers_whom_nobody_can_be() -> None:
    ((pattern, severity, problem),) = found(item("*@example.com", "store"))
    assert (pattern, severity) == ("*", "note")
    assert problem.startswith("shadowed")
    assert found(item("*@example.com", "store"), received=["example.com", ".example.com"]) == []
    assert found(item("*@example.com", "store"), received=[]) == []


@pytest.mark.parametrize(
    ("pattern", "received", "yes"),
    [
        ("*", ["example.com"], True),
        ("a@example.com", ["Example.com"], True),
        ("*@example.com", ["example.com"], True),
        ("a@sub.example.com", ["example.com"], False),
        ("a@sub.example.com", [".example.com"], True),
        ("a@example.com", [".example.com"], False),
        ("a@badexample.com", [".example.com"], False),
        ("a@example.com", ["a@example.com"], True),
        ("a+x@example.com", ["a@example.com"], True),
        ("b@example.com", ["a@example.com"], False),
        ("*@example.com", ["a@example.com"], True),
        ("a@example.com", [], True),
        ("a@example.com", ["*"], True),
    ],
)
def test_what_ses_lets_through(pattern: str, received: list[str], yes: bool) -> None:
    assert rule_check.is_received(pattern, received) is yes


def tokens(*parameters: str) -> Tokens:
    return Tokens(DEFAULT, PREFIX, frozenset(parameters))


def test_targets_without_credentials() -> None:
    rule = item("a@example.com", "forward-to-gmail", [ANNA, "Ben+x@gmail.com"])
    own = f"{PREFIX}anna_40gmail.com"
    (finding,) = found(rule, tokens=tokens(own))
    assert finding[:2] == ("a@example.com", "defect")
    assert f"no credentials for ben@gmail.com: neither {PREFIX}ben_40gmail.com" in finding[2]
    assert found(rule, tokens=tokens(own, f"{PREFIX}ben_40gmail.com")) == []
    assert found(rule, tokens=tokens(own, DEFAULT)) == []
    assert found(rule, tokens=None) == []
    assert found({**rule, "enabled": False}, tokens=tokens()) == []


def test_mailboxes_that_one_default_token_can_hardly_all_serve() -> None:
    rules = [
        item("a@example.com", "forward-to-gmail", ANNA),
        item("b@example.com", "forward-to-gmail", ["ben@gmail.com", ANNA]),
    ]
    assert [(f[0], f[1]) for f in found(*rules, tokens=tokens(DEFAULT))] == [
        ("a@example.com", "note"),
        ("b@example.com", "note"),
    ]


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("anna.smith@gmail.com", "annasmith@gmail.com", True),
        ("annasmith@gmail.com", "a.n.n.a.smith@googlemail.com", True),
        ("anna@gmail.com", "anna@googlemail.com", True),
        ("anna@gmail.com", "ann@gmail.com", False),
        # Other domains' dots count, also where Google has the mailbox.
        ("anna.smith@example.com", "annasmith@example.com", False),
    ],
)
def test_two_names_of_one_gmail_mailbox(first: str, second: str, one: bool) -> None:
    rules = [
        item("a@example.com", "forward-to-gmail", first),
        item("b@example.com", "forward-to-gmail", second),
    ]
    problem = f"{second} and {first} are one mailbox to Gmail, and an email for both comes twice"
    assert found(*rules) == ([("b@example.com", "note", problem)] if one else [])
