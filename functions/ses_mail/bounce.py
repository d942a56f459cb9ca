"""Sending one bounce for all recipients of an email that get one, at most once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProxyConnectionError,
)

from ses_mail import addresses, bounce_policy, clock, stored_email
from ses_mail.bounce_limit import BounceLimit
from ses_mail.bounce_records import BounceClaim, BounceRecords
from ses_mail.deliveries import Ended
from ses_mail.errors import BounceRejectedError, BounceThrottledError, DeliveryInProgressError
from ses_mail.headers import Headers
from ses_mail.outcomes import ALREADY_THERE, BOUNCED, SENDER_LIMIT, SUPPRESSED

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ses import SESClient
    from mypy_boto3_ses.type_defs import MessageDsnTypeDef, SendBounceRequestTypeDef

_LEASE_MARGIN = 30.0
# Seconds that SendBounce and the record of its answer may take: longer than the client's time-outs
# for both, or `sending` would be left behind by a Lambda that was ended before it could send.
TIME_TO_SEND = 40.0
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
# Raised before the first byte of a request has left.
_NEVER_LEFT = (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProxyConnectionError,
)


class OutOfTimeError(Exception):
    """Too little of the invocation is left for SendBounce; the step is retried."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Bouncer:
    """Sends bounces; our_domains in A-label form."""

    records: BounceRecords
    limit: BounceLimit
    s3: "S3Client"
    ses: "SESClient"
    our_domains: Sequence[str]
    seconds_left: Callable[[], float]

    def bounce(self, order: Order) -> Ended:
        """Bounce, or suppress with a reason.

        Raises BounceRejectedError, BounceThrottledError, DeliveryInProgressError. After an answer
        that got lost nothing is given back: the next attempt finds `sending` and suppresses.
        """
        _, fields = stored_email.find(self.s3, order.bucket, order.key)
        opened = self.records.open(
            order.message_id, order.recipients, order.force, self.seconds_left() + _LEASE_MARGIN
        )
        claim = opened.claim
        if claim is None:
            return _summary(list(opened.ended.values()))
        with self._giving_back(claim):
            if reason := self._reason_against(order, fields):
                suppressed = Ended(SUPPRESSED, "", reason)
                self.records.end(claim, suppressed, order.execution)
                return suppressed
        with self._giving_back(claim, counted=order.source):
            self._need_time()
            self.records.mark_sending(claim, order.execution)
            self._need_time()
        with self._giving_back(claim, counted=order.source, after=surely_unsent):
            bounced = Ended(BOUNCED, self._send(order, claim.recipients))
        self.records.end(claim, bounced, order.execution)
        return bounced

    def _reason_against(self, order: Order, fields: Headers) -> str:
        """Why no bounce may be sent; empty if one may, which is then counted."""
        verdict = bounce_policy.decide(
            bounce_policy.Received(
                source=order.source,
                receipt=order.receipt,
                received_at=order.received_at,
                fields=fields,
                our_domains=self.our_domains,
            )
        )
        if not verdict.bounce:
            return verdict.reason
        return "" if self.limit.count(order.source) else SENDER_LIMIT

    def _need_time(self) -> None:
        left = self.seconds_left()
        if left < TIME_TO_SEND:
            raise OutOfTimeError(f"{left:.0f} s are left, a bounce may take {TIME_TO_SEND:.0f} s")

    @contextmanager
    def _giving_back(
        self,
        claim: BounceClaim,
        counted: str = "",
        after: Callable[[Exception], bool] = lambda _: True,
    ) -> Iterator[None]:
        """Give the lease back after such an error, and the count of this sender.

        If even this fails, the lease runs out by itself. A count that stayed would, after a few
        retries, fill the sender's hour, and the limit suppresses for good.
        """
        try:
            yield
        except Exception as error:
            if after(error):
                with suppress(BotoCoreError, ClientError, DeliveryInProgressError):
                    self.records.give_back(claim)
                if counted:
                    with suppress(BotoCoreError, ClientError):
                        self.limit.uncount(counted)
            raise

    def _send(self, order: Order, recipients: Sequence[str]) -> str:
        try:
            answer = self.ses.send_bounce(**bounce_request(order, recipients))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            text = f"SES refuses to bounce: {code}: {error.response['Error']['Message']}"
            if code in _THROTTLED:
                raise BounceThrottledError(text, code) from None
            if code in _REJECTED:
                raise BounceRejectedError(text, code) from None
            raise
        return answer["MessageId"]


def surely_unsent(error: Exception) -> bool:
    """Whether SES has said no, or never heard of the bounce; anything else leaves it in doubt."""
    if isinstance(error, ClientError):
        return 400 <= error.response["ResponseMetadata"]["HTTPStatusCode"] < 500
    return isinstance(error, (BounceRejectedError, BounceThrottledError, *_NEVER_LEFT))


def bounce_request(order: Order, recipients: Sequence[str]) -> "SendBounceRequestTypeDef":
    """SendBounce's parameters: an RFC 3464 report that names every recipient, status 5.1.1."""
    domain = addresses.split(addresses.canonical(recipients[0]))[1]
    message_dsn: MessageDsnTypeDef = {"ReportingMta": f"dns; {domain}"}
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
