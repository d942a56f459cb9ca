"""Decisions and their grouping."""

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ses_mail import addresses, routing
from ses_mail.errors import InvalidRoutingRuleError
from ses_mail.routing import BOUNCE, DROP, FORWARD, PARK, STORE, Decision

FORWARD_TO = {"action": FORWARD, "enabled": True}


def forward(*targets: str) -> dict[str, Any]:
    return {**FORWARD_TO, "target": list(targets) if len(targets) > 1 else targets[0]}


BOUNCE_ALL = {"action": "bounce", "target": "", "enabled": True}
RULES: dict[str, dict[str, Any]] = {
    "anna@example.com": forward("anna@gmail.com"),
    "anna+vip@example.com": forward("vip@gmail.com"),
    "off@example.com": {**forward("off@gmail.com"), "enabled": False},
    "off+tag@example.com": {**forward("off@gmail.com"), "enabled": False},
    "*@example.com": {"action": "store"},
    "*@quiet.example": {"action": "drop", "enabled": True},
    "*@off.example": {"action": "store", "enabled": False},
    "typo@example.com": {"action": "forward", "target": "x@gmail.com"},
    "*": BOUNCE_ALL,
}


@pytest.mark.parametrize(
    ("recipient", "action", "matched", "reason"),
    [
        ("anna@example.com", FORWARD, "anna@example.com", "address"),
        ("ANNA@Example.COM", FORWARD, "anna@example.com", "address"),
        ("anna+news@example.com", FORWARD, "anna@example.com", "address"),
        ("anna+vip@example.com", FORWARD, "anna+vip@example.com", "address"),  # exact wins
        ("ben@example.com", STORE, "*@example.com", "domain wildcard"),
        ("off@example.com", STORE, "*@example.com", "domain wildcard"),  # disabled = absent
        ("off+tag@example.com", STORE, "*@example.com", "domain wildcard"),  # twice disabled
        ("x@quiet.example", DROP, "*@quiet.example", "domain wildcard"),
        ("x@off.example", BOUNCE, "*", "global wildcard"),
        ("x@sub.example.com", BOUNCE, "*", "global wildcard"),  # not the parent's wildcard
        ('"anna+x"@example.com', STORE, "*@example.com", "domain wildcard"),  # no tag in quotes
        ("postmaster", BOUNCE, "*", "global wildcard"),
        # A broken rule never falls through to a broader one.
        (
            "typo@example.com",
            PARK,
            "typo@example.com",
            "rule typo@example.com: unknown action 'forward', expected one of "
            "forward-to-gmail, bounce, store, drop",
        ),
    ],
)
def test_the_first_enabled_rule_that_matches(
    recipient: str, action: str, matched: str, reason: str
) -> None:
    decision = routing.decide(recipient, RULES)
    assert (decision.recipient, decision.action) == (recipient, action)
    assert (decision.matched_rule, decision.reason) == (matched, reason)
    assert bool(decision.targets) == (action == FORWARD)


def test_no_rule_at_all_stores() -> None:
    """A bounce cannot be taken back, and an empty table must not bounce everyone."""
    assert routing.decide("x@example.com", {}) == decided(
        "x@example.com", STORE, rule="none", why="no rule"
    )


@pytest.mark.parametrize(("verdict", "action"), [("virus", DROP), ("loop", STORE)])
def test_an_unsafe_email_needs_no_rule(verdict: str, action: str) -> None:
    assert routing.decide_unsafe("x@y.example", verdict) == decided(
        "x@y.example", action, rule="none", why=verdict
    )


def test_a_replay_to_a_mailbox_needs_no_rule() -> None:
    assert routing.decide_replayed("x@y.example", "anna@gmail.com") == decided(
        "x@y.example", FORWARD, "anna@gmail.com", rule="none", why="replayed to"
    )


@pytest.mark.parametrize(
    ("item", "targets"),
    [
        (forward("anna@gmail.com"), ("anna@gmail.com",)),
        (forward(" Anna+x@Gmail.com "), ("anna@gmail.com",)),
        (forward("b@gmail.com", "a@gmail.com"), ("b@gmail.com", "a@gmail.com")),
        (forward("a@gmail.com", "A+tag@gmail.com"), ("a@gmail.com",)),
        ({**FORWARD_TO, "target": {"b@gmail.com", "a@gmail.com"}}, ("a@gmail.com", "b@gmail.com")),
        ({"action": FORWARD, "target": "a@gmail.com"}, ("a@gmail.com",)),  # enabled by default
        (BOUNCE_ALL, ()),
        ({"action": STORE, "target": "ignored"}, ()),
        ({"action": DROP, "target": 7}, ()),
    ],
)
def test_valid_rules(item: dict[str, Any], targets: tuple[str, ...]) -> None:
    rule = routing.parse_rule("p@example.com", item)
    assert rule == routing.Rule("p@example.com", item["action"], targets)


@pytest.mark.parametrize(
    ("item", "defect"),
    [
        ({}, "unknown action None"),
        ({"action": "Forward-to-Gmail", "target": "a@b.c"}, "unknown action 'Forward-to-Gmail'"),
        ({"action": ["bounce"]}, "unknown action ['bounce']"),
        ({"action": PARK}, "unknown action 'park'"),
        ({"action": STORE, "enabled": "false"}, "enabled is 'false', not true or false"),
        ({"action": STORE, "enabled": None}, "enabled is None, not true or false"),
        ({"action": STORE, "enabled": Decimal(0)}, "enabled is Decimal('0')"),
        (FORWARD_TO, "target None is neither an address nor a list"),
        ({**FORWARD_TO, "target": ""}, "target '' is not an address"),
        ({**FORWARD_TO, "target": []}, "target [] is neither an address nor a list"),
        ({**FORWARD_TO, "target": {"a": "b"}}, "is neither an address nor a list"),
        ({**FORWARD_TO, "target": "me"}, "target 'me' is not an address"),
        ({**FORWARD_TO, "target": "a@x.com, b@y.com"}, "is not an address"),
        (forward("a@gmail.com", "oops"), "target 'oops' is not an address"),
        ({**FORWARD_TO, "target": ["a@gmail.com", None]}, "target None is not an address"),
        ({**FORWARD_TO, "target": {Decimal(1)}}, "target Decimal('1') is not an address"),
    ],
)
def test_malformed_rules(item: dict[str, Any], defect: str) -> None:
    with pytest.raises(InvalidRoutingRuleError) as raised:
        routing.parse_rule("p@example.com", item)
    assert "rule p@example.com: " in str(raised.value)
    assert defect in str(raised.value)
    decision = routing.decide("p@example.com", {"p@example.com": item, "*": BOUNCE_ALL})
    assert (decision.action, decision.reason) == (PARK, str(raised.value))


@pytest.mark.parametrize("item", [{"enabled": False}, {"enabled": False, "action": "typo"}])
def test_a_disabled_rule_may_be_half_written(item: dict[str, Any]) -> None:
    assert routing.parse_rule("p@example.com", item) is None


def decided(
    recipient: str, action: str, *targets: str, rule: str = "*", why: str = "w"
) -> Decision:
    return Decision(
        recipient=recipient, action=action, matched_rule=rule, reason=why, targets=targets
    )


def test_a_long_list_of_rules_is_cut() -> None:
    """A dead letter has to hold it."""
    decisions = [decided(f"{n}@x.example", BOUNCE, rule=f"{n}@x.example") for n in range(200)]
    (delivery,) = routing.group(decisions)
    assert len(delivery.recipients) == 200
    assert len(delivery.matched_rule) == 1000
    assert delivery.matched_rule.startswith("0@x.example, 1@x.example, ")


def test_one_copy_per_mailbox_and_one_bounce() -> None:
    deliveries = routing.group(
        [
            decided("a1@x", FORWARD, "anna@g", rule="a1@x", why="address"),
            decided("n1@x", BOUNCE),
            decided("a2@x", FORWARD, "anna@g", "ben@g", rule="*@x", why="domain wildcard"),
            decided("s@x", STORE, why="no rule"),
            decided("n2@x", BOUNCE),
            decided("d@x", DROP),
            decided("p1@x", PARK, why="broken"),
            decided("p2@x", PARK, why="broken too"),
            decided("b@x", FORWARD, "ben@g", rule="b@x", why="address"),
            decided("n1@x", BOUNCE),
        ]
    )
    assert [(d.action, d.target, d.recipients, d.matched_rule, d.reason) for d in deliveries] == [
        (STORE, "", ("s@x",), "*", "no rule"),
        (DROP, "", ("d@x",), "*", "w"),
        (PARK, "", ("p1@x",), "*", "broken"),
        (PARK, "", ("p2@x",), "*", "broken too"),
        (BOUNCE, "", ("n1@x", "n2@x"), "*", "w"),
        (FORWARD, "anna@g", ("a1@x", "a2@x"), "a1@x, *@x", "address, domain wildcard"),
        (FORWARD, "ben@g", ("a2@x", "b@x"), "*@x, b@x", "domain wildcard, address"),
    ]


def test_what_the_state_machine_gets() -> None:
    (parked,) = routing.group([decided("p@x", PARK, rule="p@x", why="broken")])
    assert parked.as_state() == {
        "action": "park",
        "target": "",
        "recipients": ["p@x"],
        "matchedRule": "p@x",
        "reason": "broken",
        "failure": {"Error": "InvalidRoutingRuleError", "Cause": "broken"},
    }
    (forwarded,) = routing.group([decided("a@x", FORWARD, "anna@g")])
    assert forwarded.as_state() == {
        "action": "forward-to-gmail",
        "target": "anna@g",
        "recipients": ["a@x"],
        "matchedRule": "*",
        "reason": "w",
    }


@pytest.mark.parametrize(("targets", "made"), [(99, 99), (100, 100), (101, 101), (150, 101)])
def test_at_most_a_hundred_deliveries(targets: int, made: int) -> None:
    mailboxes = [f"m{n}@g" for n in range(targets)]
    deliveries = routing.group(
        [decided("a@x", FORWARD, *mailboxes), decided("b@x", FORWARD, mailboxes[-1])]
    )
    assert len(deliveries) == made
    if targets > 100:
        *served, rest = deliveries
        assert [d.target for d in served] == mailboxes[:100]
        assert (rest.action, rest.recipients) == (PARK, ("a@x", "b@x"))
        assert f"{targets} deliveries of one email, of which 100 fit" in rest.reason


def test_deliveries_fit_into_a_state() -> None:
    mailboxes = [f"m{n}@gmail.com" for n in range(100)]
    everyone = [f"{n:03}{'x' * 250}@example.com" for n in range(100)]
    deliveries = routing.group([decided(r, FORWARD, *mailboxes) for r in everyone])
    assert deliveries[-1].action == PARK
    assert deliveries[-1].recipients == tuple(everyone)
    assert len(deliveries) > 1
    assert sum(len(r.encode()) for d in deliveries for r in d.recipients) < 200 * 1024


RECIPIENT = st.sampled_from([f"{name}@{d}.example" for name in "abcdefgh" for d in ("x", "y")])
MAILBOXES = st.lists(
    st.sampled_from([f"m{n}@g.example" for n in range(140)]), min_size=1, max_size=60, unique=True
)
DECISIONS = st.lists(
    st.one_of(
        st.builds(
            lambda r, t, why: decided(r, FORWARD, *t, rule=r, why=why),
            RECIPIENT,
            MAILBOXES,
            st.sampled_from(["address", "domain wildcard"]),
        ),
        st.builds(
            lambda r, action, why: decided(r, action, why=why),
            RECIPIENT,
            st.sampled_from([BOUNCE, STORE, DROP, PARK]),
            st.sampled_from(["global wildcard", "no rule", "broken"]),
        ),
    ),
    max_size=12,
    unique_by=lambda d: d.recipient,
)


@given(DECISIONS)
def test_everyone_is_served_exactly_once(decisions: list[Decision]) -> None:
    deliveries = routing.group(decisions)
    assert len(deliveries) <= 101
    wanted = Counter(
        (d.recipient, d.action, target) for d in decisions for target in d.targets or ("",)
    )
    limit = [d for d in deliveries if "of one email" in d.reason]
    served = Counter(
        (r, d.action, d.target) for d in deliveries if d not in limit for r in d.recipients
    )
    assert all(count == 1 for count in served.values())
    assert served <= wanted
    unserved = {recipient for recipient, _, _ in wanted - served}
    assert unserved == {r for d in limit for r in d.recipients}
    mailboxes = [d.target for d in deliveries if d.action == FORWARD]
    assert len(set(mailboxes)) == len(mailboxes)
    assert sum(d.action == BOUNCE for d in deliveries) <= 1
    order = [STORE, DROP, PARK, BOUNCE, FORWARD]
    kept = [d for d in deliveries if d not in limit]
    assert kept == sorted(kept, key=lambda d: order.index(d.action))


@given(st.lists(st.emails(), max_size=5), st.dictionaries(st.text(max_size=8), st.text(max_size=8)))
def test_whatever_a_rule_says_every_recipient_is_decided(
    recipients: list[str], item: dict[str, Any]
) -> None:
    for recipient in recipients:
        rules = dict.fromkeys(addresses.patterns(recipient), item)
        decision = routing.decide(recipient, rules)
        assert decision.recipient == recipient
        assert decision.action in (*routing.ACTIONS, PARK)
        assert decision.matched_rule
        assert decision.reason
