"""Sending one bounce for all recipients of an email that get one, at most once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from ses_mail import addresses, bounce_policy, clock, stored_email
from ses_mail.deliveries import BounceClaim, Deliveries, Ended
from ses_mail.errors import BounceRejectedError, BounceThrottledError, DeliveryInProgressError
from ses_mail.outcomes import ALREADY_THERE, BOUNCED, SENDER_LIMIT, SUPPRESSED

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ses import SESClient

_LEASE_MARGIN = 30.0
_THROTTLED = ("Throttling", "ThrottlingException", "TooManyRequestsException")
_REJECTED = (
    "MessageRejected",
    "MailFromDomainNotVerified",
    "MailFromDomainNotVerifiedException",
    "AccountSendingPaused",
    "AccountSendingPausedException",
    "InvalidParameterValue",
    "ValidationError",
)


@dataclass(frozen=True)
class Order:
    """One bounce as the state machine asks for it; source is the envelope sender."""

    message_id: str
    source: str
    received_at: float | None
    receipt: Mapping[str, Any]
    recipients: tuple[str, ...]
    bucket: str
    key: str
    execution: str
    force: str


@dataclass(frozen=True)
class Bouncer:
    """Sends bounces; our_domains in A-label form, per_hour is the cap for one sender."""

    deliveries: Deliveries
    s3: "S3Client"
    ses: "SESClient"
    our_domains: Sequence[str]
    per_hour: int
    seconds_left: Callable[[], float]

    def bounce(self, order: Order) -> Ended:
        """Bounce, or suppress with a reason.

        Raises BounceRejectedError, BounceThrottledError, DeliveryInProgressError. After an answer
        that got lost nothing is given back: the next attempt finds `sending` and suppresses.
        """
        _, fields = stored_email.find(self.s3, order.bucket, order.key)
        claim, ended = self.deliveries.claim_bounces(
            order.message_id,
            order.recipients,
            order.force,
            self.seconds_left() + _LEASE_MARGIN,
        )
        if claim is None:
            return _summary(list(ended.values()))
        sender = addresses.canonical(order.source)
        counted = False
        try:
            verdict = bounce_policy.decide(
                bounce_policy.Received(
                    order.source, order.receipt, order.received_at, fields, self.our_domains
                )
            )
            if verdict.bounce:
                counted = self.deliveries.count_bounce(sender, self.per_hour)
                if not counted:
                    verdict = bounce_policy.Verdict(False, SENDER_LIMIT)
            if not verdict.bounce:
                self.deliveries.end_bounces(claim, SUPPRESSED, "", verdict.reason, order.execution)
                return Ended(SUPPRESSED, "", verdict.reason)
            self.deliveries.mark_sending(claim, order.execution)
        except Exception:
            # Nothing was sent yet. If even this fails, the lease runs out by itself.
            with suppress(BotoCoreError, ClientError, DeliveryInProgressError):
                self.deliveries.give_back_bounces(claim)
            if counted:
                # Or a few retries would fill the sender's hour, and a limit suppresses for good.
                with suppress(BotoCoreError, ClientError):
                    self.deliveries.uncount_bounce(sender)
            raise
        left = [r for r in order.recipients if r not in ended]
        result_id = self._send(order, left, claim, sender)
        self.deliveries.end_bounces(claim, BOUNCED, result_id, "", order.execution)
        return Ended(BOUNCED, result_id)

    def _send(
        self, order: Order, recipients: Sequence[str], claim: BounceClaim, sender: str
    ) -> str:
        try:
            answer = self.ses.send_bounce(**bounce_request(order, recipients))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if 400 <= status < 500:
                self.deliveries.give_back_bounces(claim)
                self.deliveries.uncount_bounce(sender)
            text = f"SES refuses to bounce: {code}: {error.response['Error']['Message']}"
            if code in _THROTTLED:
                raise BounceThrottledError(text, code) from None
            if code in _REJECTED:
                raise BounceRejectedError(text, code) from None
            raise
        return answer["MessageId"]


def bounce_request(order: Order, recipients: Sequence[str]) -> dict[str, Any]:
    """SendBounce's parameters: an RFC 3464 report that names every recipient, status 5.1.1."""
    domain = addresses.split(addresses.canonical(recipients[0]))[1]
    message_dsn = {"ReportingMta": f"dns; {domain}"}
    if order.received_at is not None:
        message_dsn["ArrivalDate"] = clock.iso(order.received_at)
    return {
        "OriginalMessageId": order.message_id,
        "BounceSender": f"mailer-daemon@{domain}",
        "Explanation": "The address does not exist here, so the email was not delivered.",
        "MessageDsn": message_dsn,
        "BouncedRecipientInfoList": [
            {
                "Recipient": recipient,
                "BounceType": "DoesNotExist",
                "RecipientDsnFields": {
                    "FinalRecipient": recipient,
                    "Action": "failed",
                    "Status": "5.1.1",
                    "DiagnosticCode": "smtp; 550 5.1.1 no such address",
                },
            }
            for recipient in recipients
        ],
    }


def _summary(ended: Sequence[Ended]) -> Ended:
    """Of a bounce that earlier attempts had ended, recipient by recipient."""
    bounced = [e for e in ended if e.state == BOUNCED]
    return Ended(BOUNCED, bounced[0].result_id, ALREADY_THERE) if bounced else ended[0]
