"""Records of bounces: one per email and recipient, all those of one bounce written together."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ses_mail import clock, delivery_keys
from ses_mail.deliveries import DeliveryTable, Ended, ended
from ses_mail.errors import DeliveryInProgressError
from ses_mail.outcomes import MAYBE_SENT, SUPPRESSED

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

CLAIMED, SENDING = "claimed", "sending"

# AWS, "TransactWriteItems": up to 100 actions.
TRANSACTION = 100


@dataclass(frozen=True)
class BounceClaim:
    """The right to bounce an email for some recipients, under the keys of their records."""

    keys: Mapping[str, Mapping[str, str]]
    token: str

    @property
    def recipients(self) -> list[str]:
        """Whom the bounce is about, as the envelope spells them."""
        return list(self.keys)


@dataclass(frozen=True)
class Opened:
    """What is left to bounce, None if nothing, and what had ended before."""

    claim: BounceClaim | None
    ended: Mapping[str, Ended]


@dataclass(frozen=True)
class BounceRecords:
    """The bounces in the deliveries table.

    A change of up to 100 records is one transaction. Those of more recipients are several, in the
    order of the keys, so that two attempts meet at the first; a crash between them leaves some
    recipients without a bounce (`maybe-sent`), never with two.
    """

    table: DeliveryTable

    def open(self, message_id: str, recipients: Sequence[str], force: str, lease: float) -> Opened:
        """Take the bounces of all recipients that still need one, for `lease` seconds.

        A bounce whose sending was never confirmed is ended as `suppressed`, reason `maybe-sent`:
        nobody can be asked whether it went out, and two are worse than none. Raises
        DeliveryInProgressError while another attempt holds one of them.
        """
        # Two spellings of one address are one key, and a transaction refuses to write it twice.
        keys: dict[str, tuple[str, Mapping[str, str]]] = {}
        for recipient in recipients:
            key = delivery_keys.bounce(message_id, recipient, force)
            keys.setdefault(key["SK"], (recipient, key))
        records = {r["SK"]: r for r in self.table.read_all([key for _, key in keys.values()])}
        now = int(clock.now())
        over: dict[str, Ended] = {}
        free: dict[str, Mapping[str, str]] = {}
        for sort_key, (recipient, key) in keys.items():
            record = records.get(sort_key, {})
            if _is_held(record, now):
                raise DeliveryInProgressError(
                    f"another attempt bounces {message_id} for {recipient} right now"
                )
            if found := ended(record):
                over[recipient] = found
            elif record.get("delivery_state") == SENDING:
                over[recipient] = Ended(SUPPRESSED, "", MAYBE_SENT)
                lost = BounceClaim({recipient: key}, record["lease_token"])
                self.end(lost, over[recipient], record.get("execution", ""))
            else:
                free[recipient] = key
        return Opened(self._claim(free, now, lease) if free else None, over)

    def _claim(self, keys: Mapping[str, Mapping[str, str]], now: int, lease: float) -> BounceClaim:
        claim = BounceClaim(keys, uuid.uuid4().hex)
        self._transact(
            claim,
            {
                "entity_type": "DELIVERY",
                "delivery_state": CLAIMED,
                "lease_token": claim.token,
                "lease_until": int(now + lease),
            },
            "attribute_not_exists(PK) OR (delivery_state = :claimed AND lease_until < :now)",
            {"claimed": CLAIMED, "now": now},
        )
        return claim

    def mark_sending(self, claim: BounceClaim, execution: str) -> None:
        """The last thing before SendBounce: from here on a crash means `maybe-sent`."""
        self._write(claim, {"delivery_state": SENDING, "execution": execution})

    def end(self, claim: BounceClaim, end: Ended, execution: str) -> None:
        """Record what became of the bounces: BOUNCED or SUPPRESSED."""
        self._write(
            claim,
            {
                "delivery_state": end.state,
                "result_id": end.result_id,
                "reason": end.reason,
                "execution": execution,
            },
            remove=["lease_until"],
        )

    def give_back(self, claim: BounceClaim) -> None:
        """Of bounces that surely were not sent: the next attempt may claim them at once."""
        self._write(claim, {"delivery_state": CLAIMED, "lease_until": 0})

    def _write(
        self, claim: BounceClaim, set_: Mapping[str, Any], remove: Sequence[str] = ()
    ) -> None:
        # What was ended as in doubt has no lease: whoever comes that late must not send.
        condition = "lease_token = :token AND attribute_exists(lease_until)"
        self._transact(claim, set_, condition, {"token": claim.token}, remove)

    def _transact(
        self,
        claim: BounceClaim,
        set_: Mapping[str, Any],
        condition: str,
        given: Mapping[str, Any],
        remove: Sequence[str] = (),
    ) -> None:
        changes = [
            self.table.change(key, set_, remove=remove, condition=condition, given=given)
            for key in sorted(claim.keys.values(), key=itemgetter("SK"))
        ]
        writes: list[TransactWriteItemTypeDef] = [
            {"Update": change.request(self.table.name)} for change in changes
        ]
        dynamodb = self.table.dynamodb
        for start in range(0, len(writes), TRANSACTION):
            try:
                dynamodb.transact_write_items(TransactItems=writes[start : start + TRANSACTION])
            except dynamodb.exceptions.TransactionCanceledException as error:
                reasons = error.response.get("CancellationReasons", [])
                if any(r.get("Code") == "ConditionalCheckFailed" for r in reasons):
                    first = changes[start].key
                    raise DeliveryInProgressError(
                        f"another attempt handles {first['SK']} of {first['PK']} right now"
                    ) from None
                raise


def _is_held(record: Mapping[str, Any], now: int) -> bool:
    """Whether another attempt may still be at work on the bounce."""
    return bool(record) and ended(record) is None and record["lease_until"] >= now
