"""`Send bounce`: tells the envelope sender that recipients do not exist, if that hurts nobody."""

import os
from typing import Any

from ses_mail import clients, clock, observe
from ses_mail.addresses import domain_to_ascii
from ses_mail.bounce import Bouncer, Order
from ses_mail.deliveries import Deliveries
from ses_mail.outcomes import SUPPRESSED
from ses_mail.payloads import BouncerPayload, DeliveryResult


@observe.task
def handler(event: BouncerPayload, context: Any) -> DeliveryResult:
    """One bounce for all recipients of the delivery, or none, with the reason."""
    delivery, email = event["delivery"], event["email"]
    order = Order(
        event["messageId"],
        event["source"],
        clock.parse(event.get("receivedAt", "")),
        event["receipt"],
        tuple(delivery["recipients"]),
        email["bucket"],
        email["key"],
        event["executionArn"],
        event.get("force", ""),
    )
    table, days = os.environ["DELIVERIES_TABLE"], int(os.environ["RETENTION_DAYS"])
    bouncer = Bouncer(
        Deliveries(clients.dynamodb(), table, days),
        clients.s3(),
        clients.ses(),
        [domain_to_ascii(domain) for domain in os.environ["DOMAINS"].split(",")],
        int(os.environ["BOUNCES_PER_SENDER_PER_HOUR"]),
        lambda: float(context.get_remaining_time_in_millis() / 1000),
    )
    ended = bouncer.bounce(order)
    observe.action_result(delivery, ended.state, ended.result_id, ended.reason)
    observe.count("BouncesSuppressed" if ended.state == SUPPRESSED else "Bounced")
    return {"outcome": ended.state, "resultId": ended.result_id, "reason": ended.reason}
