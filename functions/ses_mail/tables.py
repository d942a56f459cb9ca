"""DynamoDB's tables in plain Python values: reading many items at once, and changes of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import UpdateTypeDef

# What lies in a table, in plain values: ours has names (payloads.py), but anybody may have written
# anything.
Item = dict[str, Any]

# The limit of BatchGetItem.
_BATCH = 100


class TableBusyError(Exception):
    """DynamoDB leaves keys unread although it was asked again; the step is retried."""


def read_all(
    dynamodb: "DynamoDBClient", table: str, keys: Sequence[Mapping[str, str]]
) -> list[Item]:
    """The items under {PK, SK} keys that exist, as plain values, consistently read, in any order.

    Never sleeps: throttling leaves keys unread, which are asked for again while that helps.
    """
    items: list[Item] = []
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


@dataclass(frozen=True, kw_only=True)
class Update:
    """A change of one item, for UpdateItem or as part of a transaction.

    set_ gives attributes their values, keep those that the item lacks, add counts up. condition is
    an expression over attributes' own names, with the values of `given` as `:name`.
    """

    key: Mapping[str, str]
    set_: Mapping[str, Any] = field(default_factory=dict)
    keep: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, int] = field(default_factory=dict)
    remove: Sequence[str] = ()
    condition: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def request(self, table: str) -> "UpdateTypeDef":
        """The parameters that UpdateItem and TransactWriteItems share.

        Attributes go by placeholders, since any name may be one of DynamoDB's reserved words.
        """
        values = {**self.set_, **self.keep, **self.add}
        clauses = {
            "SET": [f"#{name} = :new_{name}" for name in self.set_]
            + [f"#{name} = if_not_exists(#{name}, :new_{name})" for name in self.keep],
            "ADD": [f"#{name} :new_{name}" for name in self.add],
            "REMOVE": [f"#{name}" for name in self.remove],
        }
        new = {f":new_{name}": value for name, value in values.items()}
        return {
            "TableName": table,
            "Key": serialize(self.key),
            "UpdateExpression": " ".join(
                f"{clause} {', '.join(parts)}" for clause, parts in clauses.items() if parts
            ),
            "ConditionExpression": self.condition,
            "ExpressionAttributeNames": {f"#{name}": name for name in (*values, *self.remove)},
            "ExpressionAttributeValues": serialize(
                {**new, **{f":{name}": value for name, value in self.given.items()}}
            ),
        }


def read(dynamodb: "DynamoDBClient", table: str, key: Mapping[str, str]) -> Item:
    """The item under {PK, SK} as plain values, consistently read; empty if there is none."""
    answer = dynamodb.get_item(TableName=table, Key=serialize(key), ConsistentRead=True)
    return deserialize(answer.get("Item", {}))


def serialize(plain: Mapping[str, Any]) -> Item:
    """Plain values as DynamoDB's typed ones."""
    return {name: TypeSerializer().serialize(value) for name, value in plain.items()}


def deserialize(item: Mapping[str, Any]) -> Item:
    """DynamoDB's typed values as plain ones."""
    return {name: TypeDeserializer().deserialize(value) for name, value in item.items()}
