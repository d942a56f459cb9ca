"""Looking up the routes of all recipients of an email."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ses_mail import outcomes, route_table, routing

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


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
    rules = route_table.rules_for(dynamodb, table, recipients)
    return [routing.decide(recipient, rules) for recipient in recipients]
