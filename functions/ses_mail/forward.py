"""Delivering one email into one mailbox, at most once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from ses_mail import stored_email
from ses_mail.credentials import CredentialStore, MailboxCredentials
from ses_mail.deliveries import Ended
from ses_mail.errors import GmailRejectedError, GmailTemporaryError, GmailTokenError
from ses_mail.forward_records import Claim, ForwardRecords, Upload
from ses_mail.gmail import GmailImport, SessionGoneError
from ses_mail.outcomes import ALREADY_THERE, DELIVERED
from ses_mail.stored_email import StoredEmail

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A claim outlives its Lambda by this much, so that two never work on one delivery.
_LEASE_MARGIN = 30.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """One delivery as the state machine asks for it; force is a nonce, or empty."""

    message_id: str
    mailbox: str
    recipients: tuple[str, ...]
    labels: tuple[str, ...]
    email: StoredEmail
    execution: str
    force: str


@dataclass(frozen=True)
class Forwarder:
    """Forwards orders with what one Lambda environment keeps.

    seconds_left says how long this invocation may still run.
    """

    records: ForwardRecords
    credentials: CredentialStore
    s3: "S3Client"
    seconds_left: Callable[[], float]

    def forward(self, order: Order) -> Ended:
        """Import the email, or find that an earlier attempt had.

        Raises the Gmail errors of errors.py and DeliveryInProgressError.
        """
        lease = self.seconds_left() + _LEASE_MARGIN
        claim = self.records.claim(order.message_id, order.mailbox, order.force, lease)
        if isinstance(claim, Ended):
            return Ended(claim.state, claim.result_id, ALREADY_THERE)
        attempt = _Attempt(self, order, claim)
        try:
            return attempt.run()
        except Exception:
            # If even this fails, the lease runs out by itself.
            with suppress(BotoCoreError, ClientError):
                self.records.give_back(claim)
            raise


class _Attempt:
    """One claimed attempt; keeps the upload across a renewal of the credentials."""

    def __init__(self, forwarder: Forwarder, order: Order, claim: Claim) -> None:
        self._forwarder = forwarder
        self._order = order
        self._claim = claim
        self._upload = claim.upload

    def run(self) -> Ended:
        store, mailbox = self._forwarder.credentials, self._order.mailbox
        used: MailboxCredentials | None = None
        try:
            used = store.for_mailbox(mailbox)
            return self._deliver(used)
        except GmailTokenError:
            # The operator may have renewed the token within the minute that we keep it.
            if not store.renewed(used, mailbox):
                raise
            return self._deliver(store.for_mailbox(mailbox))

    def _deliver(self, credentials: MailboxCredentials) -> Ended:
        order = self._order
        if self._upload and (ended := self._go_on(credentials, self._upload)):
            return ended
        size = len(delivered_to(order.recipients)) + order.email.size
        gmail = self._gmail(credentials, order.labels, size)
        try:
            fresh = Upload(
                session=gmail.start(),
                recipients=order.recipients,
                labels=order.labels,
                size=size,
                etag=order.email.etag,
            )
            self._forwarder.records.record_upload(self._claim, fresh)
            self._upload = fresh
            return self._send(gmail, fresh, 0)
        finally:
            gmail.close()

    def _gmail(
        self, credentials: MailboxCredentials, labels: Sequence[str], size: int
    ) -> GmailImport:
        own = self._forwarder.credentials.own_parameter(self._order.mailbox)
        return GmailImport(credentials, own, labels, size, self._forwarder.seconds_left)

    def _go_on(self, credentials: MailboxCredentials, stored: Upload) -> Ended | None:
        """Ask the session of an earlier attempt first: it may have delivered the email.

        None if the upload must start again: the session is gone, or it lacks bytes of an object
        that is not there any more. It stays on record until there is a new one: as long as the
        token is refused, nobody knows whether the session would be.
        """
        gmail = self._gmail(credentials, stored.labels, stored.size)
        try:
            begin, message_id = gmail.progress(stored.session)
            if message_id is not None:
                return self._delivered(stored, message_id)
            if stored.etag == self._order.email.etag:
                return self._send(gmail, stored, begin)
        except SessionGoneError:
            pass
        finally:
            gmail.close()
        return None

    def _send(self, gmail: GmailImport, upload: Upload, begin: int) -> Ended:
        lines = delivered_to(upload.recipients)

        def read(start: int, length: int) -> bytes:
            head = lines[start : start + length]
            body_start = max(0, start - len(lines))
            return head + stored_email.read_range(
                self._forwarder.s3, self._order.email, body_start, length - len(head)
            )

        try:
            message_id = gmail.upload(upload.session, begin, read)
        except SessionGoneError:
            self._forwarder.records.forget_upload(self._claim)
            raise GmailTemporaryError("Google lost the upload session", "session_lost") from None
        except GmailRejectedError:
            # Asked again, this session would refuse again, even after the cause is fixed.
            self._forwarder.records.forget_upload(self._claim)
            raise
        return self._delivered(upload, message_id)

    def _delivered(self, upload: Upload, message_id: str) -> Ended:
        order = self._order
        self._forwarder.records.record_delivered(
            self._claim, message_id, upload.recipients, order.execution
        )
        others = set(upload.recipients) != set(order.recipients)
        return Ended(DELIVERED, message_id, ALREADY_THERE if others else "")


def delivered_to(recipients: Sequence[str]) -> bytes:
    """The lines put on top of the email, so that Gmail's filters can tell aliases apart."""
    return "".join(f"Delivered-To: {recipient}\r\n" for recipient in recipients).encode()
