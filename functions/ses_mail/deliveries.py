"""The record of every delivery, so that none is made twice (table `ses-mail-deliveries-{env}`).

A forward goes claimed → uploading → delivered (forward_records.py); a bounce claimed → sending →
bounced, or to suppressed from either (bounce_records.py). Every write is conditional: on the record
being free for a claim, on the lease's token for all that follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ses_mail import clock, tables
from ses_mail.outcomes import BOUNCED, DELIVERED, SUPPRESSED
from ses_mail.tables import Update

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ENDED = (DELIVERED, BOUNCED, SUPPRESSED)

# Dead letters live 14 days and can be redriven from then on; no record may go before that.
_MIN_DAYS = 45
_DAY = 24 * 3600


@dataclass(frozen=True)
class Ended:
    """A delivery that needs nothing more; result_id is Gmail's or SES's id of it."""

    state: str
    result_id: str
    reason: str = ""


@dataclass(frozen=True)
class DeliveryTable:
    """The table; retention_days is that of the bucket (0 = emails are kept for ever)."""

    dynamodb: "DynamoDBClient"
    name: str
    retention_days: int

    def change(
        self,
        key: Mapping[str, str],
        set_: Mapping[str, Any],
        *,
        condition: str,
        given: Mapping[str, Any],
        keep: Mapping[str, Any] | None = None,
        remove: Sequence[str] = (),
    ) -> Update:
        """A change of a record, which also renews for how long the record lives.

        Without end if emails are kept for ever, which takes an end away that was set before.
        """
        touched: dict[str, Any] = {**set_, "updated_at": clock.iso()}
        removed = [*remove]
        if self.retention_days:
            days = max(self.retention_days + 1, _MIN_DAYS)
            touched["expires_at"] = int(clock.now()) + days * _DAY
        else:
            removed.append("expires_at")
        return Update(
            key=key, set_=touched, keep=keep or {}, remove=removed, condition=condition, given=given
        )

    def read_all(self, keys: Sequence[Mapping[str, str]]) -> list[tables.Item]:
        """The records under these keys that exist, consistently read, in any order."""
        return tables.read_all(self.dynamodb, self.name, keys)


def ended(record: Mapping[str, Any]) -> Ended | None:
    """How the delivery ended, by its record; None if it is still to be made."""
    if record.get("delivery_state") not in ENDED:
        return None
    return Ended(record["delivery_state"], record.get("result_id", ""), record.get("reason", ""))
