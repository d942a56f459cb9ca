"""One email into one mailbox, at most once, whatever breaks on the way.

Every attempt is a fresh Forwarder with a fresh CredentialStore, as after a crash of the process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from ses_mail import clients, gmail
from ses_mail.credentials import CredentialStore
from ses_mail.deliveries import DeliveryTable, Ended
from ses_mail.errors import (
    DeliveryInProgressError,
    GmailRejectedError,
    GmailTemporaryError,
    GmailTokenError,
)
from ses_mail.forward import Forwarder, Order, delivered_to
from ses_mail.forward_records import ForwardRecords
from ses_mail.stored_email import StoredEmail

from local.google import CHUNK_GRAIN, Fault, Google

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

ANNA, INFO, NEWS = "anna@gmail.com", "info@example.com", "news@example.com"
EMAIL = b"Subject: \xff8-bit\r\n\r\nNUL \x00, bare CR \r, bare LF \n, no final newline \x80"
LARGE = b"Subject: large\r\n\r\n" + bytes(range(256)) * 8192
KEY = f"FORWARD#{ANNA}"


@dataclass
class World:
    """A mailbox, an email in the bucket, and an order to bring the one into the other."""

    aws: "Aws"
    google: Google
    order: Order
    raw: bytes
    seconds: float = 300.0

    def attempt(self, store: CredentialStore | None = None, **changes: Any) -> Ended:
        """One invocation in a new process."""
        aws = self.aws
        forwarder = Forwarder(
            ForwardRecords(DeliveryTable(clients.dynamodb(), aws.deliveries_table, 90)),
            store or self.store(),
            clients.s3(),
            lambda: self.seconds,
        )
        return forwarder.forward(replace(self.order, **changes))

    def store(self) -> CredentialStore:
        return CredentialStore(
            clients.ssm(), self.aws.token_parameter, self.aws.mailbox_token_prefix
        )

    @property
    def item(self) -> dict[str, Any]:
        return self.aws.deliveries()[KEY]

    @property
    def mailbox(self) -> list[bytes]:
        return [message.raw for message in self.google.messages(ANNA)]

    def expected(self, *recipients: str) -> bytes:
        return delivered_to(recipients or self.order.recipients) + self.raw


@pytest.fixture
def make(
    aws: "Aws", google: Google, time: "Clock", monkeypatch: pytest.MonkeyPatch
) -> Callable[..., World]:
    monkeypatch.setattr(gmail, "CHUNK", 4 * CHUNK_GRAIN)

    def made(raw: bytes = EMAIL) -> World:
        stored = aws.put_email(raw)
        aws.put_token(google.add_mailbox(ANNA))
        email = StoredEmail(stored["bucket"], stored["key"], stored["size"], stored["etag"])
        order = Order(
            message_id="m1",
            mailbox=ANNA,
            recipients=(INFO,),
            labels=("INBOX", "UNREAD"),
            email=email,
            execution="arn:1",
            force="",
        )
        return World(aws, google, order, raw)

    return made


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def test_an_email_arrives(world: World) -> None:
    ended = world.attempt()
    (message,) = world.google.messages(ANNA)
    assert ended == Ended("delivered", message.id)
    assert message.raw == b"Delivered-To: info@example.com\r\n" + EMAIL
    assert message.labels == ("INBOX", "UNREAD")
    assert world.item["result_id"] == message.id
    assert world.item["execution"] == "arn:1"


@pytest.mark.parametrize(
    "raw",
    [LARGE, b"", b"\r\n", b"x" * (4 * CHUNK_GRAIN - len(delivered_to([INFO])))],
    ids=["several chunks", "empty", "no headers", "exactly one chunk"],
)
def test_emails_of_every_size(make: Callable[..., World], raw: bytes) -> None:
    world = make(raw)
    assert world.attempt().state == "delivered"
    assert world.mailbox == [world.expected()]


def test_every_alias_has_its_line(world: World) -> None:
    world.attempt(recipients=(INFO, NEWS))
    assert world.mailbox[0].startswith(
        b"Delivered-To: info@example.com\r\nDelivered-To: news@example.com\r\nSubject:"
    )


def test_the_line_of_an_international_recipient() -> None:
    assert delivered_to(["ünal@bücher.example"]) == "Delivered-To: ünal@bücher.example\r\n".encode()


def test_delivered_twice_is_delivered_once(world: World) -> None:
    first = world.attempt()
    assert world.attempt() == Ended("delivered", first.result_id, "already-there")
    assert world.attempt(recipients=(NEWS,)).reason == "already-there"
    assert world.mailbox == [world.expected()]


def test_force_delivers_again(world: World) -> None:
    world.attempt()
    assert world.attempt(force="nonce").reason == ""
    assert world.attempt(force="nonce").reason == "already-there"
    assert world.mailbox == [world.expected()] * 2


# -- lost answers and crashes ----------------------------------------------------------------------


def test_the_answer_is_lost_after_the_last_byte(world: World) -> None:
    world.google.faults.append(Fault("last_chunk", kind="reset", when="after", times=None))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    assert world.item["delivery_state"] == "uploading"
    starts = world.google.requests["start"]
    ended = world.attempt()
    assert ended == Ended("delivered", world.google.messages(ANNA)[0].id)
    assert world.mailbox == [world.expected()], "asked the session and did not import twice"
    assert world.google.requests["start"] == starts
    assert world.google.requests["status"] == 1


def test_a_finished_session_that_answers_with_nothing(world: World) -> None:
    world.google.faults += [
        Fault("last_chunk", kind="reset", when="after", times=None),
        Fault("status", 200, body=b""),
    ]
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    assert world.attempt() == Ended("delivered", "")
    assert world.mailbox == [world.expected()]


def test_halfway_then_another_attempt_goes_on(make: Callable[..., World]) -> None:
    world = make(LARGE)
    world.google.faults.append(Fault("chunk", kind="reset", when="mid", times=None))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    world.google.faults.clear()
    assert world.attempt().reason == ""
    assert world.mailbox == [world.expected()]
    assert world.google.requests["start"] == 1


def test_halfway_then_finished_for_other_recipients(make: Callable[..., World]) -> None:
    """The stored upload is finished as it was begun; a mailbox gets one copy."""
    world = make(LARGE)
    world.google.faults.append(Fault("last_chunk", kind="reset", times=None))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    world.google.faults.clear()
    ended = world.attempt(recipients=(NEWS,), labels=("SPAM",), execution="arn:2")
    assert ended.reason == "already-there"
    assert world.mailbox == [world.expected(INFO)]
    assert world.google.messages(ANNA)[0].labels == ("INBOX", "UNREAD")
    assert (world.item["recipients"], world.item["execution"]) == ([INFO], "arn:2")


class CrashError(BaseException):
    """The process is gone: nothing of ours runs any more."""


@pytest.mark.parametrize("at_call", [1, 2], ids=["before the first byte", "after the first chunk"])
def test_a_crash_in_the_upload(make: Callable[..., World], time: "Clock", at_call: int) -> None:
    world = make(LARGE)
    calls = 0

    def crash(**_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise CrashError

    events = clients.s3().meta.events
    events.register("before-send.s3.GetObject", crash)
    try:
        with pytest.raises(CrashError):
            world.attempt()
    finally:
        events.unregister("before-send.s3.GetObject", crash)
    assert world.mailbox == []
    with pytest.raises(DeliveryInProgressError):  # the lease was not given back
        world.attempt()
    time.advance(331)
    assert world.attempt(recipients=(NEWS, INFO)).reason == "already-there"
    assert world.mailbox == [world.expected(INFO)]


def test_a_crash_between_import_and_record(world: World, time: "Clock") -> None:
    world.aws.wire.lose_request("dynamodb.UpdateItem", skip=2)  # claim, record the upload, …
    with pytest.raises(ConnectionClosedError):
        world.attempt()
    assert len(world.mailbox) == 1
    world.aws.wire.cut()
    assert world.item["delivery_state"] == "uploading"
    time.advance(331)
    assert world.attempt().state == "delivered"
    assert world.mailbox == [world.expected()]


def test_no_byte_goes_out_before_the_session_is_stored(world: World) -> None:
    world.aws.wire.lose_request("dynamodb.UpdateItem", skip=1)
    with pytest.raises(ConnectionClosedError):
        world.attempt()
    assert world.google.requests["last_chunk"] == 0
    assert world.mailbox == []


def test_the_lease_is_held_by_another_attempt(world: World, time: "Clock") -> None:
    records = ForwardRecords(DeliveryTable(clients.dynamodb(), world.aws.deliveries_table, 90))
    records.claim("m1", ANNA, "", 330)
    with pytest.raises(DeliveryInProgressError):
        world.attempt()
    time.advance(331)
    assert world.attempt().state == "delivered"


def test_the_lease_outlives_the_invocation(world: World) -> None:
    world.google.faults.append(Fault("start", 400, "x"))
    world.seconds = 250
    counted: list[int] = []

    def look(**_: Any) -> None:
        counted.append(int(world.item["lease_until"]))

    events = clients.ssm().meta.events
    events.register("before-send.ssm.GetParameter", look)
    try:
        with pytest.raises(GmailRejectedError):
            world.attempt()
    finally:
        events.unregister("before-send.ssm.GetParameter", look)
    assert counted[0] == 1795514405 + 250 + 30


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("start", 429, "rateLimitExceeded"), GmailTemporaryError),
        (Fault("last_chunk", 503, "backendError"), GmailTemporaryError),
        (Fault("start", 400, "invalidArgument"), GmailRejectedError),
        (Fault("last_chunk", 400, "invalidArgument"), GmailRejectedError),
        (Fault("start", 403, "forbidden"), GmailTokenError),
        (Fault("last_chunk", 404, "notFound"), GmailTemporaryError),
    ],
    ids=lambda value: f"{value.on} {value.status}" if isinstance(value, Fault) else None,
)
def test_a_failed_attempt_gives_its_lease_back(
    world: World, fault: Fault, error: type[Exception]
) -> None:
    world.google.faults.append(fault)
    with pytest.raises(error):
        world.attempt()
    assert world.item["lease_until"] == 0
    assert world.attempt().state == "delivered"
    assert world.mailbox == [world.expected()]


def test_nothing_can_be_given_back_while_the_table_is_down(world: World) -> None:
    """The cause is what counts; the lease runs out by itself."""
    world.google.faults.append(Fault("start", 400, "invalidArgument"))
    world.aws.wire.lose_request("dynamodb.UpdateItem", skip=1)
    with pytest.raises(GmailRejectedError):
        world.attempt()
    world.aws.wire.cut()
    with pytest.raises(DeliveryInProgressError):
        world.attempt()


# -- sessions that end -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410])
def test_a_lost_session_is_begun_anew(make: Callable[..., World], status: int) -> None:
    world = make(LARGE)
    world.google.faults.append(Fault("last_chunk", 503, "backendError"))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    world.google.faults.append(Fault("status", status, "notFound"))
    assert world.attempt().reason == ""
    assert world.mailbox == [world.expected()]
    assert world.google.requests["start"] == 2


def test_a_session_lost_in_the_upload_is_forgotten(world: World) -> None:
    world.google.faults.append(Fault("last_chunk", 410, "gone"))
    with pytest.raises(GmailTemporaryError) as raised:
        world.attempt()
    assert raised.value.code == "session_lost"
    assert "upload" not in world.item
    assert world.attempt().state == "delivered"
    assert world.mailbox == [world.expected()]


def test_a_refused_session_is_forgotten(world: World) -> None:
    """Asked again, it would refuse again, even after the cause is mended."""
    world.google.faults.append(Fault("last_chunk", 400, "invalidArgument"))
    with pytest.raises(GmailRejectedError):
        world.attempt()
    assert "upload" not in world.item


def rewritten(world: World, raw: bytes) -> StoredEmail:
    """The object after somebody wrote it once more: with another ETag."""
    stored = world.aws.put_email(raw)
    return StoredEmail(stored["bucket"], stored["key"], stored["size"], stored["etag"])


def test_another_object_under_the_key_is_another_upload(world: World) -> None:
    world.google.faults.append(Fault("last_chunk", 503, "backendError"))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    world.raw = b"Subject: other\r\n\r\n"
    assert world.attempt(email=rewritten(world, world.raw)).state == "delivered"
    assert world.mailbox == [world.expected()]
    assert world.google.requests["status"] == 1


def test_an_upload_that_was_finished_counts_whatever_the_object_is_by_now(world: World) -> None:
    """Its answer was lost, and then the object was written once more."""
    world.google.faults.append(Fault("last_chunk", kind="reset", when="after", times=None))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    ended = world.attempt(email=rewritten(world, EMAIL + b"x"))
    assert ended == Ended("delivered", world.google.messages(ANNA)[0].id)
    assert world.mailbox == [world.expected()]


@pytest.mark.parametrize("status", [400, 403, 409, 412])
def test_a_session_that_is_refused_does_not_block_its_delivery(world: World, status: int) -> None:
    world.google.faults.append(Fault("last_chunk", 503, "backendError"))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    world.google.faults.append(Fault("status", status, "x", times=None))
    assert world.attempt().state == "delivered"
    assert world.mailbox == [world.expected()]


def test_a_finished_session_survives_a_token_that_is_refused(world: World) -> None:
    """Whether the token or the session is refused, only a new session shows; until there is one,
    the old one is kept."""
    world.google.faults.append(Fault("last_chunk", kind="reset", when="after", times=None))
    with pytest.raises(GmailTemporaryError):
        world.attempt()
    refused = [Fault(on, 403, "domainPolicy", times=None) for on in ("status", "start")]
    world.google.faults[:] = refused
    with pytest.raises(GmailTokenError):
        world.attempt()
    world.google.faults.clear()
    assert world.attempt() == Ended("delivered", world.google.messages(ANNA)[0].id)
    assert world.mailbox == [world.expected()]


def test_an_object_changed_under_our_hands_is_not_sent(world: World) -> None:
    world.aws.put_email(b"Subject: other\r\n\r\n")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        world.attempt()
    assert world.mailbox == []


def test_out_of_time(make: Callable[..., World]) -> None:
    world = make(LARGE)
    world.seconds = 19
    with pytest.raises(GmailTemporaryError) as raised:
        world.attempt()
    assert raised.value.code == "out_of_time"
    world.seconds = 300
    assert world.attempt().state == "delivered"
    assert world.mailbox == [world.expected()]


# -- tokens ----------------------------------------------------------------------------------------


def test_a_token_renewed_while_the_old_one_is_cached(world: World) -> None:
    store = world.store()
    world.attempt(store)
    world.google.revoke(ANNA)
    world.aws.put_token(world.google.add_mailbox(ANNA))
    assert world.attempt(store, message_id="m2").state == "delivered"
    assert len(world.mailbox) == 2


def test_a_token_renewed_in_the_middle_of_an_upload(make: Callable[..., World]) -> None:
    world = make(LARGE)
    renewed = world.google.add_mailbox(ANNA)

    def renew(**_: Any) -> None:
        world.aws.put_token(renewed)

    world.google.faults.append(Fault("last_chunk", 401, "authError", times=3))
    events = clients.s3().meta.events
    events.register("before-send.s3.GetObject", renew)
    try:
        assert world.attempt().state == "delivered"
    finally:
        events.unregister("before-send.s3.GetObject", renew)
    assert world.mailbox == [world.expected()]
    assert world.google.requests["start"] == 1, "the session is gone on with, not begun anew"


def test_a_dead_token_that_nobody_renewed(world: World) -> None:
    world.google.revoke(ANNA)
    counted = world.aws.wire.count("ssm")
    with pytest.raises(GmailTokenError) as raised:
        world.attempt()
    assert raised.value.code == "invalid_grant"
    assert counted["GetParameter"] == 4, "each parameter once more, no third time"
    assert world.item["lease_until"] == 0


def test_a_mailbox_that_nobody_may_act_for_names_the_parameter_to_create(world: World) -> None:
    world.google.add_mailbox("ben@gmail.com")
    with pytest.raises(GmailTokenError) as raised:
        world.attempt(mailbox="ben@gmail.com")
    assert raised.value.code == "forbidden"
    assert "ben@gmail.com" in str(raised.value)
    assert f"{world.aws.mailbox_token_prefix}ben_40gmail.com" in str(raised.value)


def test_its_own_parameter_created_meanwhile(world: World) -> None:
    store = world.store()
    ben = world.google.add_mailbox("ben@gmail.com")
    with pytest.raises(GmailTokenError):
        world.attempt(store, mailbox="ben@gmail.com")
    world.aws.put_token(ben, store.own_parameter("ben@gmail.com"))
    assert world.attempt(store, mailbox="ben@gmail.com").state == "delivered"
    assert len(world.google.messages("ben@gmail.com")) == 1


def test_missing_and_malformed_parameters(world: World) -> None:
    clients.ssm().delete_parameter(Name=world.aws.token_parameter)
    store = world.store()
    with pytest.raises(GmailTokenError) as missing:
        world.attempt(store)
    assert missing.value.code == "missing_credentials"
    world.aws.put_token("{")
    with pytest.raises(GmailTokenError) as malformed:
        world.attempt(store)
    assert malformed.value.code == "malformed_credentials"
    world.aws.put_token(world.google.add_mailbox(ANNA))
    assert world.attempt(store).state == "delivered", "mended, it works at once"
