"""Reading the routing table in as few requests as DynamoDB allows."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ses_mail import addresses, tables

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


def rules_for(
    dynamodb: "DynamoDBClient", table: str, recipients: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The items of all patterns that might match, under their patterns.

    Consistent reads: an edit takes effect for the next email. An error is an error, never an
    absent rule.
    """
    wanted = dict.fromkeys(p for r in recipients for p in addresses.patterns(r))
    items = tables.read_all(dynamodb, table, [key(p) for p in wanted])
    return {pattern(item): item for item in items}
