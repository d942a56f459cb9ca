"""The keys of the deliveries table (`ses-mail-deliveries-{env}`): what lies where.

    PK                   SK                                what
    EMAIL#{messageId}    FORWARD#{mailbox}[#{force}]       a delivery to a mailbox
    EMAIL#{messageId}    BOUNCE#{recipient}[#{force}]      the bounce for one recipient, canonical
    EMAIL#{messageId}    PARKED#{execution name}           all that this execution failed to do is
                                                           in a queue (the state machine writes it)
    SENDER#{address}     HOUR#{2026-11-24T10}              bounces sent to it in that hour
    TOKEN#{parameter}    CHECK                             what Google said of this token last

force is the nonce of a repeated delivery (`sesmail replay --force`).
"""

from collections.abc import Mapping

from ses_mail.addresses import canonical

Key = Mapping[str, str]

_FORWARD, _BOUNCE, _PARKED = "FORWARD#", "BOUNCE#", "PARKED#"


def email(message_id: str) -> str:
    """The partition of all that is known of one email."""
    return f"EMAIL#{message_id}"


def forward(message_id: str, mailbox: str, force: str = "") -> Key:
    """One delivery to a mailbox."""
    return {"PK": email(message_id), "SK": _sort_key(_FORWARD, mailbox, force)}


def bounce(message_id: str, recipient: str, force: str = "") -> Key:
    """One recipient's share in a bounce."""
    return {"PK": email(message_id), "SK": _sort_key(_BOUNCE, canonical(recipient), force)}


def parked(message_id: str, execution_name: str) -> Key:
    """The mark that an execution has parked what failed."""
    return {"PK": email(message_id), "SK": f"{_PARKED}{execution_name}"}


def bounce_count(sender: str, hour: str) -> Key:
    """Bounces to a sender in an hour, given as the start of an RFC 3339 time (`2026-11-24T10`)."""
    return {"PK": f"SENDER#{sender}", "SK": f"HOUR#{hour}"}


def token_check(parameter: str) -> Key:
    """The last check of a token."""
    return {"PK": f"TOKEN#{parameter}", "SK": "CHECK"}


def mailbox_of(sort_key: str) -> str:
    """The mailbox of a forward's sort key; empty if it is another record's."""
    if not sort_key.startswith(_FORWARD):
        return ""
    whom = sort_key.removeprefix(_FORWARD)
    # A local part may have a `#`, a nonce never has an `@`.
    before, _, nonce = whom.rpartition("#")
    return whom if "@" in nonce else before


def execution_of(sort_key: str) -> str:
    """The execution's name of a mark's sort key; empty if it is another record's."""
    return sort_key.removeprefix(_PARKED) if sort_key.startswith(_PARKED) else ""


def _sort_key(kind: str, whom: str, force: str) -> str:
    return f"{kind}{whom}{force and f'#{force}'}"
