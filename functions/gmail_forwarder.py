"""`Forward to Gmail`: imports the email into one mailbox, at most once."""

import functools
import os
from typing import Any

from ses_mail import clients, clock, observe
from ses_mail.credentials import CredentialStore
from ses_mail.deliveries import DeliveryTable
from ses_mail.errors import GmailTemporaryError
from ses_mail.forward import Forwarder, Order
from ses_mail.forward_records import ForwardRecords
from ses_mail.payloads import DeliveryResult, ForwarderPayload
from ses_mail.stored_email import StoredEmail


@functools.cache
def _credentials() -> CredentialStore:
    return CredentialStore(
        clients.ssm(), os.environ["TOKEN_PARAMETER"], os.environ["MAILBOX_TOKEN_PREFIX"]
    )


@observe.task
def handler(event: ForwarderPayload, context: Any) -> DeliveryResult:
    """One copy for all recipients of the delivery."""
    email, delivery = event["email"], event["delivery"]
    order = Order(
        message_id=event["messageId"],
        mailbox=delivery["target"],
        recipients=tuple(delivery["recipients"]),
        labels=tuple(event["labels"]),
        email=StoredEmail(email["bucket"], email["key"], email["size"], email["etag"]),
        execution=event["executionArn"],
        force=event.get("force", ""),
    )
    table, days = os.environ["DELIVERIES_TABLE"], int(os.environ["RETENTION_DAYS"])
    records = ForwardRecords(DeliveryTable(clients.dynamodb(), table, days))

    def seconds_left() -> float:
        return float(context.get_remaining_time_in_millis() / 1000)

    try:
        ended = Forwarder(records, _credentials(), clients.s3(), seconds_left).forward(order)
    except GmailTemporaryError:
        observe.delivery_delay(clock.parse(event.get("receivedAt", "")))
        raise
    observe.action_result(delivery, ended.state, ended.result_id, ended.reason)
    observe.count("Forwarded")
    if "SPAM" in order.labels:
        observe.count("Spam")
    return {"outcome": ended.state, "resultId": ended.result_id, "reason": ended.reason}
