"""The routing table, written with conditions: nobody's edit is undone by somebody who had not seen
it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError
from ses_mail import clock, route_table, tables

from . import rules
from .errors import ChangedMeanwhileError, InvalidInputError, NotFoundError
from .hints import hint
from .session import Session

_KNOWN = {"entity_type", "recipient", "action", "target", "enabled", "description"} | {
    "created_at",
    "updated_at",
    "updated_by",
    "history",
}

Item = Mapping[str, Any]


def everything(session: Session) -> list[dict[str, Any]]:
    """All items, those included that the router never reads."""
    pages = session.dynamodb.get_paginator("scan").paginate(
        TableName=session.routing_table, ConsistentRead=True
    )
    return [tables.deserialize(item) for page in pages for item in page["Items"]]


def all_rules(session: Session) -> list[dict[str, Any]]:
    """The rules, domain by domain."""
    return sorted(filter(route_table.is_rule, everything(session)), key=rules.by_domain)


def find(session: Session, text: str) -> dict[str, Any]:
    """The rule whose pattern is exactly that, or else that in canonical form.

    A pattern put by hand may be in no canonical form, and must be found to be fixed.
    """
    patterns = [text]
    try:
        patterns.append(rules.canonical_pattern(text))
    except InvalidInputError as error:
        refusal = str(error)
    else:
        refusal = (
            f"there is no rule for {patterns[-1]}: {hint('routes', 'list', '--all')} shows all"
        )
    keys = [route_table.key(pattern) for pattern in dict.fromkeys(patterns) if pattern]
    found = {
        route_table.pattern(item): item
        for item in tables.read_all(session.dynamodb, session.routing_table, keys)
    }
    for pattern in patterns:
        if pattern in found:
            return found[pattern]
    raise NotFoundError(refusal)


def write(session: Session, before: Item | None, attributes: Item) -> dict[str, Any]:
    """Add a rule, or change it if it still is as it was read; returns the item.

    Raises ChangedMeanwhileError.
    """
    item = rules.revised(before, attributes, clock.iso(), session.caller["Arn"])
    try:
        session.dynamodb.put_item(
            TableName=session.routing_table, Item=tables.serialize(item), **_unchanged(before)
        )
    except ClientError as error:
        # The client sends a call again whose answer got lost: then the change is our own.
        if not _is_refused(error) or _read(session, item) != item:
            raise _told(error, item) from None
    return item


def remove(session: Session, before: Item) -> None:
    """Remove a rule if it still is as it was read; raises ChangedMeanwhileError."""
    try:
        session.dynamodb.delete_item(
            TableName=session.routing_table,
            Key=tables.serialize(_key(before)),
            **_unchanged(before),
        )
    except ClientError as error:
        if not _is_refused(error) or _read(session, before) is not None:
            raise _told(error, before) from None


def _unchanged(before: Item | None) -> Any:
    if before is None:
        return {"ConditionExpression": "attribute_not_exists(PK)"}
    # Not `updated_at` alone: it counts seconds, and who writes by hand may forget it.
    names, values, terms = {}, {}, ["attribute_exists(PK)"]
    for number, name in enumerate(sorted((before.keys() | _KNOWN) - {"PK", "SK"})):
        names[f"#{number}"] = name
        if name in before:
            values[f":{number}"] = before[name]
            terms.append(f"#{number} = :{number}")
        else:
            terms.append(f"attribute_not_exists(#{number})")
    condition = {"ConditionExpression": " AND ".join(terms), "ExpressionAttributeNames": names}
    # DynamoDB refuses an empty map of values.
    return condition | ({"ExpressionAttributeValues": tables.serialize(values)} if values else {})


def _key(item: Item) -> dict[str, str]:
    return {"PK": item["PK"], "SK": item["SK"]}


def _read(session: Session, item: Item) -> dict[str, Any] | None:
    found = tables.read_all(session.dynamodb, session.routing_table, [_key(item)])
    return found[0] if found else None


def _is_refused(error: ClientError) -> bool:
    return error.response["Error"]["Code"] == "ConditionalCheckFailedException"


def _told(error: ClientError, item: Item) -> Exception:
    if not _is_refused(error):
        return error
    pattern = route_table.pattern(item)
    return ChangedMeanwhileError(
        f"the rule for {pattern} was changed by somebody else just now: "
        f"look at it ({hint('routes', 'show', pattern)}) and try again"
    )
