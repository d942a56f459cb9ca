"""`Look up routes`: from recipients to deliveries, in few requests."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import router
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.lambda_ import LambdaContext, Logs

Run = Callable[..., list[dict[str, Any]]]
ANNA, BEN = "anna@gmail.com", "ben@gmail.com"


@pytest.fixture
def run(
    aws: "Aws",
    context: "LambdaContext",
    logs: "Logs",
    event: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.setenv("ROUTING_TABLE", aws.routing_table)

    def invoke(
        *recipients: str, verdict: str = "none", to: str | None = ""
    ) -> list[dict[str, Any]]:
        changes = {"recipients": list(recipients)} if recipients else {}
        sent = event("router", verdict=verdict, to=to, **changes)
        if to is None:
            del sent["to"]
        answer = router.handler(sent, context)
        assert set(answer) == {"deliveries"}
        return answer["deliveries"]

    return invoke


def test_the_sample_event(run: Run, aws: "Aws", logs: "Logs") -> None:
    aws.put_rule("anna@example.com", "forward-to-gmail", ANNA)
    aws.put_rule("*", "bounce", "")
    assert run() == [
        {
            "action": "bounce",
            "target": "",
            "recipients": ["info@example.com"],
            "matchedRule": "*",
            "reason": "global wildcard",
        },
        {
            "action": "forward-to-gmail",
            "target": ANNA,
            "recipients": ["anna+news@example.com"],
            "matchedRule": "anna@example.com",
            "reason": "address",
        },
    ]
    fields = ("recipient", "action", "target", "matchedRule", "reason", "messageId")
    message_id = "o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1"
    assert [tuple(line[f] for f in fields) for line in logs.read("Routing decision")] == [
        (
            "anna+news@example.com",
            "forward-to-gmail",
            ANNA,
            "anna@example.com",
            "address",
            message_id,
        ),
        ("info@example.com", "bounce", "", "*", "global wildcard", message_id),
    ]
    assert logs.metrics() == {}


def test_fan_out_and_aliases_give_one_copy_per_mailbox(run: Run, aws: "Aws") -> None:
    aws.put_rule("team@example.com", "forward-to-gmail", [ANNA, "Ben+team@gmail.com"])
    aws.put_rule("ben@example.com", "forward-to-gmail", BEN)
    assert [(d["target"], d["recipients"]) for d in run("team@example.com", "ben@example.com")] == [
        (ANNA, ["team@example.com"]),
        (BEN, ["team@example.com", "ben@example.com"]),
    ]


def test_no_rule_stores_and_is_counted(run: Run, logs: "Logs") -> None:
    (delivery,) = run("x@example.com", "y@example.com")
    assert (delivery["action"], delivery["matchedRule"]) == ("store", "none")
    assert delivery["recipients"] == ["x@example.com", "y@example.com"]
    assert logs.metrics() == {"Unrouted": 2, "Stored": 2}
    (line,) = logs.read("Action result")
    assert (line["result"], line["reason"]) == ("stored", "no rule")
    assert line["recipients"] == ["x@example.com", "y@example.com"]


def test_a_dropped_email_has_its_result_too(run: Run, aws: "Aws", logs: "Logs") -> None:
    aws.put_rule("*@example.com", "drop")
    assert run("x@example.com")[0]["action"] == "drop"
    assert logs.metrics() == {"Dropped": 1}
    assert logs.read("Action result")[0]["result"] == "dropped"


def test_a_malformed_rule_hurts_only_those_it_matched(run: Run, aws: "Aws", logs: "Logs") -> None:
    aws.put_rule("anna@example.com", "forward-to-gmail", ANNA)
    aws.put_rule("ben@example.com", "foward-to-gmail", BEN)
    parked, forwarded = run("ben@example.com", "anna@example.com")
    assert forwarded["recipients"] == ["anna@example.com"]
    assert (parked["action"], parked["recipients"]) == ("park", ["ben@example.com"])
    assert parked["failure"]["Error"] == "InvalidRoutingRuleError"
    assert "unknown action 'foward-to-gmail'" in parked["failure"]["Cause"]
    assert logs.metrics() == {"InvalidRules": 1}


@pytest.mark.parametrize(
    ("verdict", "action", "metrics"),
    [
        ("virus", "drop", {"Viruses": 1, "Dropped": 2}),
        ("loop", "store", {"Loops": 1, "Stored": 2}),
    ],
)
def test_an_unsafe_email_is_not_looked_up(
    run: Run, aws: "Aws", logs: "Logs", verdict: str, action: str, metrics: dict[str, int]
) -> None:
    aws.put_rule("*", "bounce")
    counted = aws.wire.count("dynamodb")
    (delivery,) = run(verdict=verdict)
    assert (delivery["action"], delivery["reason"]) == (action, verdict)
    assert delivery["matchedRule"] == "none"
    assert counted == {}
    assert logs.metrics() == metrics


def test_a_replay_to_a_mailbox_asks_no_rule(run: Run, aws: "Aws", logs: "Logs") -> None:
    aws.put_rule("*", "bounce")
    counted = aws.wire.count("dynamodb")
    (delivery,) = run("x@example.com", "y@example.com", to=ANNA)
    assert delivery == {
        "action": "forward-to-gmail",
        "target": ANNA,
        "recipients": ["x@example.com", "y@example.com"],
        "matchedRule": "none",
        "reason": "replayed to",
    }
    assert counted == {}
    assert logs.metrics() == {}


def test_a_virus_goes_to_no_mailbox_that_a_replay_names(run: Run) -> None:
    assert run("x@example.com", verdict="virus", to=ANNA)[0]["action"] == "drop"


def test_an_event_of_the_release_before_to(run: Run, aws: "Aws", event: Callable[..., Any]) -> None:
    aws.put_rule("*", "store")
    assert run("x@example.com", to=None)[0]["action"] == "store"


def test_an_edit_takes_effect_for_the_next_email(run: Run, aws: "Aws") -> None:
    aws.put_rule("*", "bounce")
    assert run("x@example.com")[0]["action"] == "bounce"
    aws.put_rule("*", "store")
    assert run("x@example.com")[0]["action"] == "store"
    aws.put_rule("*", "store", enabled=False)
    assert run("x@example.com")[0]["matchedRule"] == "none"


@pytest.mark.parametrize(
    ("recipients", "requests"),
    [(["anna@example.com"], 1), ([f"r{n}+tag@d{n}.example" for n in range(100)], 4)],
    ids=["one recipient", "100 recipients with tags at 100 domains"],
)
def test_requests_to_the_database(
    run: Run, aws: "Aws", recipients: list[str], requests: int
) -> None:
    aws.put_rule("*", "forward-to-gmail", ANNA)
    counted = aws.wire.count("dynamodb")
    (delivery,) = run(*recipients)
    assert delivery["recipients"] == recipients
    assert sum(counted.values()) == requests


@pytest.mark.parametrize("code", ["ThrottlingException", "ResourceNotFoundException"])
def test_a_database_error_is_raised(run: Run, aws: "Aws", logs: "Logs", code: str) -> None:
    aws.wire.answer("dynamodb.BatchGetItem", 400, code)
    with pytest.raises(ClientError, match=code):
        run("anna@example.com")
    assert logs.read("Routing decision") == []
    (line,) = logs.read("Action result")
    assert (line["result"], line["error"]) == ("failed", code)
    assert line["recipients"] == ["anna@example.com"]
    assert logs.metrics() == {}


def test_too_many_deliveries(run: Run, aws: "Aws") -> None:
    aws.put_rule("all@example.com", "forward-to-gmail", [f"m{n}@gmail.com" for n in range(120)])
    deliveries = run("all@example.com")
    assert len(deliveries) == 101
    assert deliveries[-1]["failure"]["Error"] == "InvalidRoutingRuleError"
