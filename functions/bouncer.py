"""`Send bounce`: tells the envelope sender that recipients do not exist, if that hurts nobody."""

import os
from typing import Any

from ses_mail import clients, clock, observe
from ses_mail.addresses import domain_to_ascii
from ses_mail.bounce import Bouncer, Order
from ses_mail.bounce_limit import BounceLimit
from ses_mail.bounce_records import BounceRecords
from ses_mail.deliveries import DeliveryTable
from ses_mail.outcomes import SUPPRESSED
from ses_mail.payloads import BouncerPayload, DeliveryResult


@observe.task
def handler(event: BouncerPayload, context: Any) -> DeliveryResult:
    """One bounce for all recipients of the delivery, or none, with the reason."""
    delivery, email = event["delivery"], event["email"]
    order = Order(
        message_id=event["messageId"],
        source=event["source"],
        received_at=clock.parse(event.get("receivedAt", "")),
        receipt=event["receipt"],
        recipients=tuple(delivery["recipients"]),
        bucket=email["bucket"],
        key=email["key"],
        execution=event["executionArn"],
        force=event.get("force", ""),
    )
    days, per_hour = os.environ["RETENTION_DAYS"], os.environ["BOUNCES_PER_SENDER_PER_HOUR"]
    table = DeliveryTable(clients.dynamodb(), os.environ["DELIVERIES_TABLE"], int(days))
    bouncer = Bouncer(
        records=BounceRecords(table),
        limit=BounceLimit(table, int(per_hour)),
        s3=clients.s3(),
        ses=clients.ses(),
        our_domains=[domain_to_ascii(domain) for domain in os.environ["DOMAINS"].split(",")],
        seconds_left=lambda: float(context.get_remaining_time_in_millis() / 1000),
    )
    ended = bouncer.bounce(order)
    observe.action_result(delivery, ended.state, ended.result_id, ended.reason)
    observe.count("BouncesSuppressed" if ended.state == SUPPRESSED else "Bounced")
    return {"outcome": ended.state, "resultId": ended.result_id, "reason": ended.reason}
