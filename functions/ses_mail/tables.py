"""Reading many items of a DynamoDB table in as few requests as it allows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# The limit of BatchGetItem.
_BATCH = 100


class TableBusyError(Exception):
    """DynamoDB leaves keys unread although it was asked again; the step is retried."""


def read_all(
    dynamodb: "DynamoDBClient", table: str, keys: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """The items under {PK, SK} keys that exist, as plain values, consistently read, in any order.

    Never sleeps: throttling leaves keys unread, which are asked for again while that helps.
    """
    items: list[dict[str, Any]] = []
    for start in range(0, len(keys), _BATCH):
        wanted: list[Any] = [serialize(key) for key in keys[start : start + _BATCH]]
        while wanted:
            answer = dynamodb.batch_get_item(
                RequestItems={table: {"Keys": wanted, "ConsistentRead": True}}
            )
            items += [deserialize(item) for item in answer["Responses"].get(table, [])]
            unprocessed = answer.get("UnprocessedKeys") or {}
            unread = list(unprocessed[table]["Keys"]) if table in unprocessed else []
            if len(unread) >= len(wanted):
                raise TableBusyError(f"{len(unread)} keys of {table} stay unread")
            wanted = unread
    return items


def serialize(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as DynamoDB's typed ones."""
    return {name: TypeSerializer().serialize(value) for name, value in plain.items()}


def deserialize(item: Mapping[str, Any]) -> dict[str, Any]:
    """DynamoDB's typed values as plain ones."""
    return {name: TypeDeserializer().deserialize(value) for name, value in item.items()}
