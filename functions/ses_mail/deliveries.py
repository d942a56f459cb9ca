"""The record of every delivery, so that none is made twice (table `ses-mail-deliveries-{env}`).

A forward goes claimed → uploading → delivered; a bounce claimed → sending → bounced, or to
suppressed from either. Every write is conditional: on the record being free for a claim, on the
lease's token for all that follows.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ses_mail import clock, delivery_keys, tables
from ses_mail.errors import DeliveryInProgressError
from ses_mail.outcomes import BOUNCED, DELIVERED, MAYBE_SENT, SUPPRESSED

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

CLAIMED, UPLOADING, SENDING = "claimed", "uploading", "sending"
_ENDED = (DELIVERED, BOUNCED, SUPPRESSED)

# Dead letters live 14 days and can be redriven from then on; no record may go before that.
_MIN_DAYS = 45
_DAY = 24 * 3600
# The limit of TransactWriteItems.
_TRANSACTION = 100


@dataclass(frozen=True)
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
class Ended:
    """A delivery that needs nothing more; result_id is Gmail's or SES's id of it."""

    state: str
    result_id: str
    reason: str = ""


@dataclass(frozen=True)
class Deliveries:
    """The table; retention_days is that of the bucket (0 = emails are kept for ever)."""

    dynamodb: "DynamoDBClient"
    table: str
    retention_days: int

    def claim_forward(
        self, message_id: str, mailbox: str, force: str, lease: float
    ) -> Claim | Ended:
        """Take the delivery of an email to a mailbox for `lease` seconds.

        force is the nonce of a repeated delivery, or empty. Raises DeliveryInProgressError while
        another attempt holds it.
        """
        key = delivery_keys.forward(message_id, mailbox, force)
        token = uuid.uuid4().hex
        try:
            answer = self.dynamodb.update_item(
                TableName=self.table,
                Key=tables.serialize(key),
                UpdateExpression="SET entity_type = :type, lease_token = :token, "
                "lease_until = :until, "
                f"delivery_state = if_not_exists(delivery_state, :claimed), {self._touch()}",
                # With our own token there already, botocore sends a call again whose answer got
                # lost.
                ConditionExpression="attribute_not_exists(PK) OR lease_token = :token OR "
                "(delivery_state IN (:claimed, :uploading) AND lease_until < :now)",
                ExpressionAttributeValues=tables.serialize(
                    {
                        ":type": "DELIVERY",
                        ":token": token,
                        ":until": int(clock.now() + lease),
                        ":now": int(clock.now()),
                        ":claimed": CLAIMED,
                        ":uploading": UPLOADING,
                        **self._touched(),
                    }
                ),
                ReturnValues="ALL_NEW",
            )
        except self.dynamodb.exceptions.ConditionalCheckFailedException:
            held = self._get(key)
            if held.get("delivery_state") in _ENDED:
                return _ended(held)
            raise DeliveryInProgressError(
                f"another attempt delivers {message_id} to {mailbox} right now"
            ) from None
        return Claim(key, token, _upload(tables.deserialize(answer["Attributes"])))

    def record_upload(self, claim: Claim, upload: Upload) -> None:
        """Store the session before its first byte goes out."""
        self._write(
            claim,
            "SET delivery_state = :state, upload = :upload",
            {
                ":state": UPLOADING,
                ":upload": {
                    "session": upload.session,
                    "recipients": list(upload.recipients),
                    "labels": list(upload.labels),
                    "size": upload.size,
                    "etag": upload.etag,
                    "lease_token": claim.token,
                },
            },
        )

    def forget_upload(self, claim: Claim) -> None:
        """Drop a session that Google refuses for good: nothing of it was delivered."""
        self._write(claim, "SET delivery_state = :state REMOVE upload", {":state": CLAIMED})

    def record_delivered(
        self, claim: Claim, result_id: str, recipients: Sequence[str], execution: str
    ) -> None:
        """The end of a forward."""
        self._write(
            claim,
            "SET delivery_state = :state, result_id = :id, recipients = :recipients, "
            "execution = :execution REMOVE upload, lease_until",
            {
                ":state": DELIVERED,
                ":id": result_id,
                ":recipients": list(recipients),
                ":execution": execution,
            },
        )

    def give_back(self, claim: Claim) -> None:
        """Let the next attempt claim at once; a lease that was lost meanwhile is none of ours."""
        try:
            self._write(claim, "SET lease_until = :zero", {":zero": 0})
        except DeliveryInProgressError:
            return

    def _write(self, claim: Claim, update: str, values: dict[str, Any]) -> None:
        expression, remove, removed = update.partition(" REMOVE ")
        try:
            self.dynamodb.update_item(
                TableName=self.table,
                Key=tables.serialize(claim.key),
                UpdateExpression=f"{expression}, {self._touch()}{remove}{removed}",
                ConditionExpression="lease_token = :token",
                ExpressionAttributeValues=tables.serialize(
                    {**values, ":token": claim.token, **self._touched()}
                ),
            )
        except self.dynamodb.exceptions.ConditionalCheckFailedException:
            raise DeliveryInProgressError(
                f"the lease of {claim.key['SK']} went to another attempt"
            ) from None

    def claim_bounces(
        self, message_id: str, recipients: Sequence[str], force: str, lease: float
    ) -> tuple["BounceClaim | None", dict[str, Ended]]:
        """Take the bounces of all recipients that still need one, in one transaction.

        Returns the claim (None if nothing is left to do) and what had ended before. A bounce whose
        sending was never confirmed is ended as `suppressed`, reason `maybe-sent`: nobody can be
        asked whether it went out, and two are worse than none.
        """
        keys = {r: delivery_keys.bounce(message_id, r, force) for r in recipients}
        ended: dict[str, Ended] = {}
        free: dict[str, Mapping[str, str]] = {}
        now = int(clock.now())
        records = tables.read_all(self.dynamodb, self.table, list(keys.values()))
        by_key = {record["SK"]: record for record in records}
        for recipient, key in keys.items():
            held = by_key.get(key["SK"], {})
            if held.get("delivery_state") in _ENDED:
                ended[recipient] = _ended(held)
            elif held and held["lease_until"] >= now:
                raise DeliveryInProgressError(
                    f"another attempt bounces {message_id} for {recipient} right now"
                )
            elif held.get("delivery_state") == SENDING:
                lost = BounceClaim((key,), held["lease_token"])
                self.end_bounces(lost, SUPPRESSED, "", MAYBE_SENT, held.get("execution", ""))
                ended[recipient] = Ended(SUPPRESSED, "", MAYBE_SENT)
            else:
                free[recipient] = key
        if not free:
            return None, ended
        claim = BounceClaim(tuple(free.values()), uuid.uuid4().hex)
        self._transact(
            claim.keys,
            f"SET entity_type = :type, lease_token = :token, lease_until = :until, "
            f"delivery_state = :claimed, {self._touch()}",
            "attribute_not_exists(PK) OR (delivery_state = :claimed AND lease_until < :now)",
            {
                ":type": "DELIVERY",
                ":token": claim.token,
                ":until": int(now + lease),
                ":now": now,
                ":claimed": CLAIMED,
            },
        )
        return claim, ended

    def mark_sending(self, claim: "BounceClaim", execution: str) -> None:
        """The last thing before SendBounce: from here on a crash means `maybe-sent`."""
        self._transact(
            claim.keys,
            f"SET delivery_state = :sending, execution = :execution, {self._touch()}",
            "lease_token = :token",
            {":sending": SENDING, ":token": claim.token, ":execution": execution},
        )

    def end_bounces(
        self, claim: "BounceClaim", state: str, result_id: str, reason: str, execution: str
    ) -> None:
        """Record what became of the bounces: BOUNCED or SUPPRESSED."""
        self._transact(
            claim.keys,
            "SET delivery_state = :state, result_id = :id, reason = :reason, "
            f"execution = :execution, {self._touch()} REMOVE lease_until",
            "lease_token = :token",
            {
                ":state": state,
                ":id": result_id,
                ":reason": reason,
                ":execution": execution,
                ":token": claim.token,
            },
        )

    def give_back_bounces(self, claim: "BounceClaim") -> None:
        """After a refusal that tells that nothing was sent."""
        self._transact(
            claim.keys,
            f"SET delivery_state = :claimed, lease_until = :zero, {self._touch()}",
            "lease_token = :token",
            {":claimed": CLAIMED, ":zero": 0, ":token": claim.token},
        )

    def count_bounce(self, sender: str, limit: int) -> bool:
        """Count one more bounce to the sender in this hour; False, uncounted, at the limit."""
        try:
            self.dynamodb.update_item(
                TableName=self.table,
                Key=tables.serialize(delivery_keys.bounce_count(sender, _hour())),
                UpdateExpression="ADD bounces :one SET expires_at = :expires, entity_type = :type",
                ConditionExpression="attribute_not_exists(bounces) OR bounces < :limit",
                ExpressionAttributeValues=tables.serialize(
                    {
                        ":one": 1,
                        ":limit": limit,
                        ":type": "BOUNCE_COUNT",
                        ":expires": int(clock.now()) + _DAY,
                    }
                ),
            )
        except self.dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def uncount_bounce(self, sender: str) -> None:
        """Take back a count of this hour whose bounce was refused."""
        # In the next hour there is nothing to take it from.
        with suppress(self.dynamodb.exceptions.ConditionalCheckFailedException):
            self.dynamodb.update_item(
                TableName=self.table,
                Key=tables.serialize(delivery_keys.bounce_count(sender, _hour())),
                UpdateExpression="ADD bounces :less",
                ConditionExpression="attribute_exists(PK)",
                ExpressionAttributeValues=tables.serialize({":less": -1}),
            )

    def _transact(
        self,
        keys: Sequence[Mapping[str, str]],
        update: str,
        condition: str,
        values: dict[str, Any],
    ) -> None:
        for start in range(0, len(keys), _TRANSACTION):
            self._transact_few(keys[start : start + _TRANSACTION], update, condition, values)

    def _transact_few(
        self,
        keys: Sequence[Mapping[str, str]],
        update: str,
        condition: str,
        values: dict[str, Any],
    ) -> None:
        items: list[TransactWriteItemTypeDef] = [
            {
                "Update": {
                    "TableName": self.table,
                    "Key": tables.serialize(key),
                    "UpdateExpression": update,
                    "ConditionExpression": condition,
                    "ExpressionAttributeValues": tables.serialize({**values, **self._touched()}),
                }
            }
            for key in keys
        ]
        try:
            self.dynamodb.transact_write_items(TransactItems=items)
        except self.dynamodb.exceptions.TransactionCanceledException as error:
            reasons = error.response.get("CancellationReasons", [])
            if any(r.get("Code") == "ConditionalCheckFailed" for r in reasons):
                raise DeliveryInProgressError(
                    f"another attempt handles {keys[0]['SK']} of {keys[0]['PK']} right now"
                ) from None
            raise

    def _get(self, key: Mapping[str, str]) -> dict[str, Any]:
        answer = self.dynamodb.get_item(
            TableName=self.table, Key=tables.serialize(key), ConsistentRead=True
        )
        return tables.deserialize(answer.get("Item", {}))

    def _touch(self) -> str:
        expires = ", expires_at = :expires" if self.retention_days else ""
        return f"updated_at = :updated{expires}"

    def _touched(self) -> dict[str, Any]:
        touched: dict[str, Any] = {":updated": clock.iso()}
        if self.retention_days:
            days = max(self.retention_days + 1, _MIN_DAYS)
            touched[":expires"] = int(clock.now()) + days * _DAY
        return touched


@dataclass(frozen=True)
class BounceClaim:
    """The right to bounce an email for some recipients: the keys of their records."""

    keys: tuple[Mapping[str, str], ...]
    token: str


def _hour() -> str:
    return clock.iso()[:13]


def _ended(item: Mapping[str, Any]) -> Ended:
    return Ended(item["delivery_state"], item.get("result_id", ""), item.get("reason", ""))


def _upload(item: Mapping[str, Any]) -> Upload | None:
    stored = item.get("upload")
    if not stored:
        return None
    return Upload(
        stored["session"],
        tuple(stored["recipients"]),
        tuple(stored["labels"]),
        int(stored["size"]),
        stored["etag"],
    )
