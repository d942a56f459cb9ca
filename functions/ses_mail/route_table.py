"""Looking up the routes of an email's recipients, in as few requests as DynamoDB allows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ses_mail import addresses, outcomes, routing, tables

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SORT_KEY = "RULE#v1"
_PREFIX = "ROUTE#"


def key(pattern: str) -> dict[str, str]:
    """The table key of a pattern."""
    return {"PK": f"{_PREFIX}{pattern}", "SK": SORT_KEY}


def is_rule(item: Mapping[str, Any]) -> bool:
    """Whether the router could ever read the item."""
    return str(item["PK"]).startswith(_PREFIX) and item["SK"] == SORT_KEY


def pattern(item: Mapping[str, Any]) -> str:
    """The pattern of a rule's item; `recipient` only repeats it for people."""
    return str(item["PK"]).removeprefix(_PREFIX)


def route(
    dynamodb: "DynamoDBClient", table: str, recipients: Sequence[str], verdict: str, to: str = ""
) -> list[routing.Decision]:
    """One decision per recipient; verdict is `none`, or `virus` or `loop`, which need no rules.

    to is the mailbox that a replay names in place of the rules, or empty.
    """
    if verdict != outcomes.SAFE:
        return [routing.decide_unsafe(recipient, verdict) for recipient in recipients]
    if to:
        return [routing.decide_replayed(recipient, to) for recipient in recipients]
    rules = rules_for(dynamodb, table, recipients)
    return [routing.decide(recipient, rules) for recipient in recipients]


def rules_for(
    dynamodb: "DynamoDBClient", table: str, recipients: Iterable[str]
) -> dict[str, tables.Item]:
    """The items of all patterns that might match, under their patterns.

    Consistent reads: an edit takes effect for the next email. An error is an error, never an
    absent rule.
    """
    wanted = dict.fromkeys(p for r in recipients for p in addresses.patterns(r))
    items = tables.read_all(dynamodb, table, [key(p) for p in wanted])
    return {pattern(item): item for item in items}
