"""Records of forwards: one per email and mailbox, with the upload session that was begun for it."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ses_mail import clock, delivery_keys, tables
from ses_mail.deliveries import DeliveryTable, Ended, ended
from ses_mail.errors import DeliveryInProgressError
from ses_mail.outcomes import DELIVERED

CLAIMED, UPLOADING = "claimed", "uploading"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a resumable session is the upload of: it can only be finished with these very bytes.

    session is Google's URI and a credential (never logged), size the length in bytes with the
    added lines, etag the stored object's.
    """

    session: str = field(repr=False)
    recipients: tuple[str, ...]
    labels: tuple[str, ...]
    size: int
    etag: str


@dataclass(frozen=True)
class Claim:
    """The right to make one delivery until the lease runs out; upload is what an earlier attempt
    began."""

    key: Mapping[str, str]
    token: str
    upload: Upload | None


@dataclass(frozen=True)
class ForwardRecords:
    """The forwards in the deliveries table."""

    table: DeliveryTable

    def claim(self, message_id: str, mailbox: str, force: str, lease: float) -> Claim | Ended:
        """Take the delivery of an email to a mailbox for `lease` seconds.

        force is the nonce of a repeated delivery, or empty. Raises DeliveryInProgressError while
        another attempt holds it.
        """
        key = delivery_keys.forward(message_id, mailbox, force)
        token, now = uuid.uuid4().hex, int(clock.now())
        claimed = self.table.change(
            key,
            {"entity_type": "DELIVERY", "lease_token": token, "lease_until": int(now + lease)},
            keep={"delivery_state": CLAIMED},
            # With our own token there already, botocore sends a call again whose answer got lost.
            condition="attribute_not_exists(PK) OR lease_token = :token OR "
            "(delivery_state IN (:claimed, :uploading) AND lease_until < :now)",
            given={"token": token, "claimed": CLAIMED, "uploading": UPLOADING, "now": now},
        )
        dynamodb = self.table.dynamodb
        try:
            answer = dynamodb.update_item(
                **claimed.request(self.table.name), ReturnValues="ALL_NEW"
            )
        except dynamodb.exceptions.ConditionalCheckFailedException:
            if over := ended(tables.read(dynamodb, self.table.name, key)):
                return over
            raise DeliveryInProgressError(
                f"another attempt delivers {message_id} to {mailbox} right now"
            ) from None
        return Claim(key, token, _upload(tables.deserialize(answer["Attributes"])))

    def record_upload(self, claim: Claim, upload: Upload) -> None:
        """Store the session before its first byte goes out."""
        stored = {
            "session": upload.session,
            "recipients": list(upload.recipients),
            "labels": list(upload.labels),
            "size": upload.size,
            "etag": upload.etag,
            "lease_token": claim.token,
        }
        self._write(claim, {"delivery_state": UPLOADING, "upload": stored})

    def forget_upload(self, claim: Claim) -> None:
        """Drop a session that Google refuses for good: nothing of it was delivered."""
        self._write(claim, {"delivery_state": CLAIMED}, remove=["upload"])

    def record_delivered(
        self, claim: Claim, result_id: str, recipients: Sequence[str], execution: str
    ) -> None:
        """The end of a forward."""
        self._write(
            claim,
            {
                "delivery_state": DELIVERED,
                "result_id": result_id,
                "recipients": list(recipients),
                "execution": execution,
            },
            remove=["upload", "lease_until"],
        )

    def give_back(self, claim: Claim) -> None:
        """Let the next attempt claim at once; a lease that was lost meanwhile is not ours."""
        try:
            self._write(claim, {"lease_until": 0})
        except DeliveryInProgressError:
            return

    def _write(self, claim: Claim, set_: Mapping[str, Any], remove: Sequence[str] = ()) -> None:
        change = self.table.change(
            claim.key,
            set_,
            remove=remove,
            condition="lease_token = :token",
            given={"token": claim.token},
        )
        dynamodb = self.table.dynamodb
        try:
            dynamodb.update_item(**change.request(self.table.name))
        except dynamodb.exceptions.ConditionalCheckFailedException:
            raise DeliveryInProgressError(
                f"the lease of {claim.key['SK']} went to another attempt"
            ) from None


def _upload(record: Mapping[str, Any]) -> Upload | None:
    stored = record.get("upload")
    if not stored:
        return None
    return Upload(
        session=stored["session"],
        recipients=tuple(stored["recipients"]),
        labels=tuple(stored["labels"]),
        size=int(stored["size"]),
        etag=stored["etag"],
    )
