"""One bounce per email, at most once, and none if it might have gone out."""

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
)
from ses_mail import clients
from ses_mail.bounce import TIME_TO_SEND, Bouncer, Order, OutOfTimeError, bounce_request
from ses_mail.bounce_limit import BounceLimit
from ses_mail.bounce_records import BounceRecords
from ses_mail.deliveries import DeliveryTable, Ended
from ses_mail.errors import (
    BounceRejectedError,
    BounceThrottledError,
    DeliveryInProgressError,
    EmailNotFoundError,
)

if TYPE_CHECKING:
    from local.ses import Ses
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock
    from tests.fixtures.wire import Wire

A, B = "a@example.com", "b@example.com"
EMAIL = b"From: Jane <jane@partner.example>\r\nSubject: x\r\n\r\nbody"
PASS = {f"{n}Verdict": {"status": "PASS"} for n in ("spam", "virus", "spf", "dkim", "dmarc")}


@dataclass
class World:
    aws: "Aws"
    ses: "Ses"
    requests: Counter[str]
    order: Order
    per_hour: int = 10
    seconds_left: Callable[[], float] = lambda: 60.0

    def attempt(self, **changes: Any) -> Ended:
        """One invocation."""
        order = replace(self.order, **changes)
        self.ses.take_in(order.message_id, order.source, (A, B), self.order.received_at or 0)
        table = DeliveryTable(clients.dynamodb(), self.aws.deliveries_table, 90)
        bouncer = Bouncer(
            records=BounceRecords(table),
            limit=BounceLimit(table, self.per_hour),
            s3=clients.s3(),
            ses=clients.ses(),
            our_domains=["example.com"],
            seconds_left=self.seconds_left,
        )
        return bouncer.bounce(order)

    def bounced(self, number: int, reason: str = "") -> Ended:
        """How an attempt ends that finds or sends the bounce of that number, from 1."""
        return Ended("bounced", self.ses.bounces[number - 1]["id"], reason)

    def states(self) -> dict[str, tuple[str, str]]:
        return {
            sk.removeprefix("BOUNCE#"): (item["delivery_state"], item.get("reason", ""))
            for sk, item in self.aws.deliveries().items()
            if sk.startswith("BOUNCE#")
        }

    def counted(self) -> int:
        (count,) = (i["bounces"] for i in self.aws.deliveries().values() if "bounces" in i)
        return int(count)


@pytest.fixture
def world(aws: "Aws", ses: "Ses", time: "Clock") -> World:
    stored = aws.put_email(EMAIL)
    receipt = {"recipients": [A, B], **PASS}
    return World(
        aws,
        ses,
        aws.wire.count("ses"),
        Order(
            message_id="m1",
            source="jane@partner.example",
            received_at=time.now - 5,
            receipt=receipt,
            recipients=(A, B),
            bucket=stored["bucket"],
            key=stored["key"],
            execution="arn:1",
            force="",
        ),
    )


def test_one_bounce_names_all_its_recipients(world: World) -> None:
    assert world.attempt() == world.bounced(1)
    (bounce,) = world.ses.bounces
    assert (bounce["to"], bounce["recipients"]) == ("jane@partner.example", [A, B])
    assert bounce["request"] == {
        "OriginalMessageId": "m1",
        "BounceSender": "mailer-daemon@example.com",
        "Explanation": "The address does not exist here, so the email was not delivered.",
        "MessageDsn": {
            "ReportingMta": "dns; example.com",
            "ArrivalDate": datetime(2026, 11, 24, 10),  # noqa: DTZ001  as moto reads it
        },
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
            for recipient in (A, B)
        ],
    }
    assert world.states() == {A: ("bounced", ""), B: ("bounced", "")}
    assert world.counted() == 1


def test_an_email_of_unknown_age_has_no_arrival_date(world: World) -> None:
    request = bounce_request(replace(world.order, received_at=None), [A])
    assert request["MessageDsn"] == {"ReportingMta": "dns; example.com"}


def test_the_sender_is_in_the_recipients_domain(world: World) -> None:
    request = bounce_request(world.order, ["x@Bücher.example", A])
    assert request["BounceSender"] == "mailer-daemon@xn--bcher-kva.example"


def test_bounced_twice_is_bounced_once(world: World) -> None:
    world.attempt()
    assert world.attempt() == world.bounced(1, "already-there")
    assert len(world.ses.bounces) == 1
    assert world.attempt(force="nonce") == world.bounced(2)


def test_a_recipient_who_comes_later_gets_a_bounce_of_his_own(world: World) -> None:
    world.attempt(recipients=(A,))
    assert world.attempt() == world.bounced(2)
    assert [b["recipients"] for b in world.ses.bounces] == [[A], [B]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": ""}, "null-sender"),
        ({"receipt": {"recipients": [A, B], **PASS, "spamVerdict": {"status": "FAIL"}}}, "spam"),
        ({"received_at": None}, "too-old"),
    ],
)
def test_a_bounce_that_could_hurt_is_suppressed(
    world: World, changes: dict[str, Any], reason: str
) -> None:
    assert world.attempt(**changes) == Ended("suppressed", "", reason)
    assert world.states() == {A: ("suppressed", reason), B: ("suppressed", reason)}
    assert world.requests["SendBounce"] == 0
    assert world.attempt() == Ended("suppressed", "", reason), "decided once and for all"


def test_the_guards_read_the_stored_headers(world: World) -> None:
    """SES cuts the notification's above 10 KB."""
    padding = b"".join(b"X-Pad-%d: %s\r\n" % (n, b"x" * 900) for n in range(100))
    stored = world.aws.put_email(padding + b"Auto-Submitted: auto-replied\r\n" + EMAIL)
    assert world.attempt(key=stored["key"]).reason == "auto-submitted"


def test_the_email_is_gone(world: World) -> None:
    with pytest.raises(EmailNotFoundError):
        world.attempt(key="emails/none")
    assert world.states() == {}


def test_the_limit_of_one_sender(world: World, time: "Clock") -> None:
    world.per_hour = 2
    ended = [world.attempt(message_id=f"m{n}") for n in range(3)]
    assert [e.state for e in ended] == ["bounced", "bounced", "suppressed"]
    assert ended[2].reason == "sender-limit"
    for spelled in ("JANE@partner.example", "jane+1@partner.example"):
        ended = world.attempt(message_id="m4", source=spelled, force=spelled)
        assert ended.reason == "sender-limit"
    assert world.attempt(message_id="m5", source="ben@partner.example").state == "bounced"
    time.advance(3600)
    assert world.attempt(message_id="m6").state == "bounced"
    assert len(world.ses.bounces) == 4


# -- around SendBounce -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["Throttling", "ThrottlingException", "TooManyRequestsException"])
def test_throttled_is_given_back(world: World, code: str) -> None:
    world.aws.wire.answer("ses.SendBounce", 400, code, times=1)
    with pytest.raises(BounceThrottledError) as raised:
        world.attempt()
    assert raised.value.code == code
    assert world.states() == {A: ("claimed", ""), B: ("claimed", "")}
    assert world.counted() == 0
    assert world.attempt() == world.bounced(1)
    assert world.requests["SendBounce"] == 2, "the client itself repeats nothing"


@pytest.mark.parametrize(
    "code",
    [
        "MessageRejected",
        "MailFromDomainNotVerified",
        "MailFromDomainNotVerifiedException",
        "AccountSendingPaused",
        "AccountSendingPausedException",
        "InvalidParameterValue",
        "ValidationError",
    ],
)
def test_rejected_is_given_back(world: World, code: str) -> None:
    world.aws.wire.answer("ses.SendBounce", 400, code, times=1)
    with pytest.raises(BounceRejectedError) as raised:
        world.attempt()
    assert raised.value.code == code
    assert str(raised.value) == f"SES refuses to bounce: {code}: {code} (injected)"
    assert world.states() == {A: ("claimed", ""), B: ("claimed", "")}
    assert world.counted() == 0
    assert world.attempt().state == "bounced", "after the cause is mended"


def test_another_refusal_is_given_back_too(world: World) -> None:
    world.aws.wire.answer("ses.SendBounce", 403, "AccessDenied", times=1)
    with pytest.raises(ClientError, match="AccessDenied"):
        world.attempt()
    assert world.attempt().state == "bounced"


@pytest.mark.parametrize(
    ("fault", "error", "sent"),
    [
        (lambda wire: wire.lose_answer("ses.SendBounce"), HTTPClientError, 1),
        (lambda wire: wire.answer("ses.SendBounce", 500, "InternalFailure"), ClientError, 0),
        (lambda wire: wire.answer("ses.SendBounce", 503, "ServiceUnavailable"), ClientError, 0),
    ],
)
def test_nobody_knows_whether_it_went_out(
    world: World,
    time: "Clock",
    fault: Callable[["Wire"], None],
    error: type[Exception],
    sent: int,
) -> None:
    fault(world.aws.wire)
    with pytest.raises(error):
        world.attempt()
    assert world.states() == {A: ("sending", ""), B: ("sending", "")}
    with pytest.raises(DeliveryInProgressError):
        world.attempt()
    time.advance(91)
    assert world.attempt() == Ended("suppressed", "", "maybe-sent")
    assert world.states() == {A: ("suppressed", "maybe-sent"), B: ("suppressed", "maybe-sent")}
    assert world.attempt() == Ended("suppressed", "", "maybe-sent")
    assert world.requests["SendBounce"] == 1, "never sent again"
    assert len(world.ses.bounces) == sent


class CrashError(BaseException):
    """The process is gone: nothing of ours runs any more."""


def crash_at(client: Any, operation: str, call: int) -> Callable[[], None]:
    calls = 0

    def crash(**_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise CrashError

    client.meta.events.register(f"before-send.{operation}", crash)
    return lambda: client.meta.events.unregister(f"before-send.{operation}", crash)


@pytest.mark.parametrize(
    ("client", "operation", "call", "left", "then", "sent"),
    [
        ("dynamodb", "TransactWriteItems", 1, None, "bounced", 1),
        ("dynamodb", "UpdateItem", 1, "claimed", "bounced", 1),
        ("dynamodb", "TransactWriteItems", 2, "claimed", "bounced", 1),
        ("ses", "SendBounce", 1, "sending", "maybe-sent", 0),
        ("dynamodb", "TransactWriteItems", 3, "sending", "maybe-sent", 1),
    ],
    ids=[
        "before the claim",
        "before the count",
        "before `sending`",
        "before SendBounce",
        "before `bounced`",
    ],
)
def test_a_crash_at_each_step(
    world: World,
    time: "Clock",
    client: str,
    operation: str,
    call: int,
    left: str | None,
    then: str,
    sent: int,
) -> None:
    revive = crash_at(getattr(clients, client)(), f"{client}.{operation}", call)
    try:
        with pytest.raises(CrashError):
            world.attempt()
    finally:
        revive()
    assert {state for state, _ in world.states().values()} == ({left} if left else set())
    if left:
        with pytest.raises(DeliveryInProgressError):
            world.attempt()
        time.advance(91)
    ended = world.attempt()
    assert then in (ended.state, ended.reason)
    assert len(world.ses.bounces) == sent
    assert world.attempt().state in ("bounced", "suppressed")
    assert len(world.ses.bounces) == sent


@pytest.mark.parametrize(
    "enough",
    [0, 1],
    ids=["before the mark", "between mark and call"],
)
def test_nothing_is_left_in_doubt_for_want_of_time(world: World, enough: int) -> None:
    """Lambda would end a call that was begun too late, and nobody could be asked about it."""
    times = iter([60.0] + [TIME_TO_SEND] * enough + [TIME_TO_SEND - 1])
    world.seconds_left = lambda: next(times)
    with pytest.raises(OutOfTimeError, match="39 s are left"):
        world.attempt()
    assert world.requests["SendBounce"] == 0
    assert world.states() == {A: ("claimed", ""), B: ("claimed", "")}
    assert world.counted() == 0
    world.seconds_left = lambda: 60.0
    assert world.attempt() == world.bounced(1)


def test_the_time_to_send_is_longer_than_the_call(aws: "Aws") -> None:
    """SES's client sends once: what it may wait for a connection and an answer, and then the
    record."""
    config = clients.ses().meta.config
    assert config.retries["total_max_attempts"] == 1
    call = config.connect_timeout + config.read_timeout
    assert call + clients.LONGEST_CALL < TIME_TO_SEND < 60, "and less than the function has"


def test_the_longest_call_is_what_the_clients_do(aws: "Aws") -> None:
    for client in (clients.dynamodb, clients.s3, clients.sqs, clients.ssm, clients.stepfunctions):
        config = client().meta.config
        attempts = config.retries["total_max_attempts"]
        assert config.retries["mode"] == "standard"
        calls = attempts * (config.connect_timeout + config.read_timeout)
        assert calls + (attempts - 1) == clients.LONGEST_CALL


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="https://email"),
        ConnectTimeoutError(endpoint_url="https://email"),
        ProxyConnectionError(proxy_url="http://proxy"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_that_was_never_made_leaves_no_doubt(world: World, error: Exception) -> None:
    def refuse(**_: Any) -> None:
        raise error

    events = clients.ses().meta.events
    events.register("before-send.ses.SendBounce", refuse)
    try:
        with pytest.raises(type(error)):
            world.attempt()
    finally:
        events.unregister("before-send.ses.SendBounce", refuse)
    assert world.states() == {A: ("claimed", ""), B: ("claimed", "")}
    assert world.counted() == 0
    assert world.attempt() == world.bounced(1)


def test_nobody_listens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own error for a refused connection is one of those."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_SES", f"http://127.0.0.1:{port}")
    clients.ses.cache_clear()
    try:
        with pytest.raises(EndpointConnectionError):
            world.attempt()
    finally:
        clients.ses.cache_clear()
    assert world.states() == {A: ("claimed", ""), B: ("claimed", "")}


def test_an_attempt_that_fails_before_sending_gives_its_lease_back(world: World) -> None:
    world.aws.wire.answer("dynamodb.UpdateItem", 400, "AccessDeniedException", times=1)
    with pytest.raises(ClientError, match="AccessDenied"):
        world.attempt()
    assert world.attempt() == world.bounced(1)


def test_a_bounce_that_could_not_be_marked_is_not_counted(world: World) -> None:
    world.aws.wire.lose_request("dynamodb.TransactWriteItems", skip=1)
    with pytest.raises(ConnectionClosedError):
        world.attempt()
    world.aws.wire.cut()
    assert world.counted() == 0


def test_nothing_can_be_given_back_while_the_table_is_down(world: World, time: "Clock") -> None:
    world.aws.wire.answer("dynamodb.UpdateItem", 400, "AccessDeniedException", times=1)
    world.aws.wire.lose_request("dynamodb.TransactWriteItems", skip=1)
    with pytest.raises(ClientError, match="AccessDenied"):
        world.attempt()
    world.aws.wire.cut()
    with pytest.raises(DeliveryInProgressError):
        world.attempt()
    time.advance(91)
    assert world.attempt().state == "bounced"


def test_the_record_of_a_sent_bounce_is_lost(world: World, time: "Clock") -> None:
    world.aws.wire.lose_request("dynamodb.TransactWriteItems", skip=2)
    with pytest.raises(ConnectionClosedError):
        world.attempt()
    world.aws.wire.cut()
    time.advance(91)
    assert world.attempt().reason == "maybe-sent"
    assert len(world.ses.bounces) == 1


def test_partly_bounced_before_partly_unknown(world: World, time: "Clock") -> None:
    world.attempt(recipients=(A,))
    world.aws.wire.lose_answer("ses.SendBounce", times=1)
    with pytest.raises(HTTPClientError):
        world.attempt(recipients=(B,))
    time.advance(91)
    assert world.attempt() == world.bounced(1, "already-there")
    assert world.states() == {A: ("bounced", ""), B: ("suppressed", "maybe-sent")}
