"""Reading the routing table with as few requests as DynamoDB allows, and no more answers."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from ses_mail import clients, route_table
from ses_mail.tables import TableBusyError

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws


def rules_for(aws: "Aws", *recipients: str) -> dict[str, dict[str, Any]]:
    return route_table.rules_for(clients.dynamodb(), aws.routing_table, recipients)


def test_every_pattern_that_might_match(aws: "Aws") -> None:
    for pattern in (
        "anna+x@example.com",
        "anna@example.com",
        "*@example.com",
        "*",
        "ben@x.example",
    ):
        aws.put_rule(pattern, "store")
    assert set(rules_for(aws, "Anna+X@example.com")) == {
        "anna+x@example.com",
        "anna@example.com",
        "*@example.com",
        "*",
    }
    assert rules_for(aws, "ben@x.example")["ben@x.example"] == {
        "PK": "ROUTE#ben@x.example",
        "SK": "RULE#v1",
        "entity_type": "ROUTE",
        "recipient": "ben@x.example",
        "action": "store",
        "enabled": True,
    }


def test_what_a_rule_may_hold(aws: "Aws") -> None:
    aws.put_rule("list@example.com", "forward-to-gmail", ["a@g.example", "b@g.example"])
    aws.put_rule("set@example.com", "forward-to-gmail", {"a@g.example", "b@g.example"})
    rules = rules_for(aws, "list@example.com", "set@example.com")
    assert rules["list@example.com"]["target"] == ["a@g.example", "b@g.example"]
    assert rules["set@example.com"]["target"] == {"a@g.example", "b@g.example"}


def test_an_empty_table_has_no_rules(aws: "Aws") -> None:
    assert rules_for(aws, "anna@example.com") == {}
    assert rules_for(aws) == {}


@pytest.mark.parametrize(
    ("recipients", "requests"),
    [
        (["anna@example.com"], 1),
        (["anna+x@example.com"] * 5, 1),
        ([f"r{n}@example.com" for n in range(98)], 1),  # 98 + domain + global
        ([f"r{n}@example.com" for n in range(99)], 2),
        ([f"r{n}+t@d{n}.example" for n in range(100)], 4),
    ],
    ids=["one", "the same five times", "100 keys", "101 keys", "100 tags at 100 domains"],
)
def test_number_of_requests(aws: "Aws", recipients: list[str], requests: int) -> None:
    aws.put_rule(recipients[-1], "store")
    aws.put_rule("*", "bounce")
    counted = aws.wire.count("dynamodb")
    assert set(rules_for(aws, *recipients)) == {recipients[-1], "*"}
    assert counted == {"BatchGetItem": requests}


def test_reads_are_consistent(aws: "Aws") -> None:
    bodies = []

    def spy(request: Any) -> tuple[int, bytes]:
        bodies.append(json.loads(request.body))
        return 200, b'{"Responses": {}}'

    aws.wire.reply("dynamodb.BatchGetItem", spy)
    rules_for(aws, "anna@example.com")
    (body,) = bodies
    assert body["RequestItems"][aws.routing_table]["ConsistentRead"] is True


def test_unprocessed_keys_are_asked_for_again(aws: "Aws") -> None:
    for pattern in ("anna@example.com", "*@example.com", "*"):
        aws.put_rule(pattern, "store")

    def keep_one_back(parsed: dict[str, Any]) -> None:
        items = parsed["Responses"][aws.routing_table]
        if len(items) > 1:
            left = items.pop()
            key = {"PK": left["PK"], "SK": left["SK"]}
            parsed["UnprocessedKeys"] = {aws.routing_table: {"Keys": [key]}}

    counted = aws.wire.count("dynamodb")
    aws.wire.change("dynamodb.BatchGetItem", keep_one_back)
    assert set(rules_for(aws, "anna@example.com")) == {"anna@example.com", "*@example.com", "*"}
    assert counted == {"BatchGetItem": 2}


def test_keys_that_stay_unread_are_an_error(aws: "Aws") -> None:
    def nothing(request: Any) -> tuple[int, bytes]:
        asked = json.loads(request.body)["RequestItems"]
        return 200, json.dumps({"Responses": {}, "UnprocessedKeys": asked}).encode()

    aws.wire.reply("dynamodb.BatchGetItem", nothing)
    with pytest.raises(TableBusyError, match=r"3 keys of ses-email-routing-.* stay unread"):
        rules_for(aws, "anna@example.com")


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (400, "ProvisionedThroughputExceededException", 2),
        (400, "ThrottlingException", 2),
        (500, "InternalServerError", 2),
        (400, "AccessDeniedException", 1),
        (400, "ResourceNotFoundException", 1),
    ],
)
def test_a_database_error_is_never_no_rule(
    aws: "Aws", status: int, code: str, requests: int
) -> None:
    counted = aws.wire.count("dynamodb")
    aws.wire.answer("dynamodb.BatchGetItem", status, code)
    aws.put_rule("*", "bounce")
    with pytest.raises(ClientError) as raised:
        rules_for(aws, "anna@example.com")
    assert raised.value.response["Error"]["Code"] == code
    assert counted["BatchGetItem"] >= requests


def test_a_lost_connection_is_an_error_too(aws: "Aws") -> None:
    aws.wire.lose_answer("dynamodb.BatchGetItem")
    with pytest.raises(ConnectionClosedError):
        rules_for(aws, "anna@example.com")


def test_a_throttled_read_that_recovers_is_no_error(aws: "Aws") -> None:
    aws.put_rule("*", "bounce")
    aws.wire.answer("dynamodb.BatchGetItem", 400, "ThrottlingException", times=1)
    assert set(rules_for(aws, "anna@example.com")) == {"*"}
