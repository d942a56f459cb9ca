"""Reading the routing table in as few requests as DynamoDB allows."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.types import TypeDeserializer

from ses_mail import addresses

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

SORT_KEY = "RULE#v1"
_PREFIX = "ROUTE#"
# The limit of BatchGetItem.
_BATCH = 100


class RoutingTableBusyError(Exception):
    """DynamoDB leaves keys unread although it was asked again; the step is retried."""


def key(pattern: str) -> dict[str, "AttributeValueTypeDef"]:
    """The table key of a pattern."""
    return {"PK": {"S": f"{_PREFIX}{pattern}"}, "SK": {"S": SORT_KEY}}


def rules_for(
    dynamodb: "DynamoDBClient", table: str, recipients: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The items of all patterns that might match, under their patterns.

    Consistent reads: an edit takes effect for the next email. An error is an error, never an
    absent rule.
    """
    patterns = list(dict.fromkeys(p for r in recipients for p in addresses.patterns(r)))
    items: dict[str, dict[str, Any]] = {}
    for start in range(0, len(patterns), _BATCH):
        keys = [key(pattern) for pattern in patterns[start : start + _BATCH]]
        while keys:
            answer = dynamodb.batch_get_item(
                RequestItems={table: {"Keys": keys, "ConsistentRead": True}}
            )
            for item in answer["Responses"].get(table, []):
                plain = {name: TypeDeserializer().deserialize(v) for name, v in item.items()}
                items[plain["PK"].removeprefix(_PREFIX)] = plain
            unprocessed = answer.get("UnprocessedKeys") or {}
            unread = unprocessed[table]["Keys"] if table in unprocessed else []
            if len(unread) >= len(keys):
                raise RoutingTableBusyError(f"{len(unread)} keys of {table} stay unread")
            keys = [dict(k) for k in unread]
    return items
