"""The count of bounces to one sender in one hour, kept in the deliveries table."""

from contextlib import suppress
from dataclasses import dataclass

from ses_mail import addresses, clock, delivery_keys
from ses_mail.deliveries import DeliveryTable
from ses_mail.tables import Update

_DAY = 24 * 3600


@dataclass(frozen=True)
class BounceLimit:
    """At most per_hour bounces to an address, whatever `+tag` it is written with."""

    table: DeliveryTable
    per_hour: int

    def count(self, sender: str) -> bool:
        """Count one more bounce in this hour; False, uncounted, at the limit."""
        dynamodb = self.table.dynamodb
        counted = Update(
            key=_key(sender),
            set_={"entity_type": "BOUNCE_COUNT", "expires_at": int(clock.now()) + _DAY},
            add={"bounces": 1},
            condition="attribute_not_exists(bounces) OR bounces < :limit",
            given={"limit": self.per_hour},
        )
        try:
            dynamodb.update_item(**counted.request(self.table.name))
        except dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def uncount(self, sender: str) -> None:
        """Take back a count of this hour whose bounce was not sent."""
        dynamodb = self.table.dynamodb
        less = Update(key=_key(sender), add={"bounces": -1}, condition="attribute_exists(PK)")
        # In the next hour there is nothing to take it from.
        with suppress(dynamodb.exceptions.ConditionalCheckFailedException):
            dynamodb.update_item(**less.request(self.table.name))


def _key(sender: str) -> delivery_keys.Key:
    return delivery_keys.bounce_count(addresses.mailbox(sender), clock.iso()[:13])
