"""The resumable upload, and every answer of Google's told by its structured fields."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime

import certifi
import httplib2
import pytest
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials
from ses_mail import gmail
from ses_mail.credentials import SCOPES, MailboxCredentials
from ses_mail.errors import GmailRejectedError, GmailTemporaryError, GmailTokenError
from ses_mail.gmail import GmailImport, SessionGoneError

from local.google import CHUNK_GRAIN, SCOPE_READONLY, Fault, Google

ANNA = "anna@example.com"
PARAMETER, OWN = "/ses-mail/test/gmail-token", "/ses-mail/test/gmail-tokens/anna_40example.com"
EMAIL = b"Delivered-To: x\r\nSubject: \xff\xfe8-bit\r\n\r\nNUL \x00, bare CR \r, bare LF \n, \x80"
LARGE = b"Subject: large\r\n\r\n" + bytes(range(256)) * 8192  # 2 MiB and a bit


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gmail, "CHUNK", 4 * CHUNK_GRAIN)  # 1 MiB


def user(info: dict[str, str], mailbox: str = ANNA) -> MailboxCredentials:
    google = Credentials(  # type: ignore[no-untyped-call]
        None,
        refresh_token=info["refresh_token"],
        client_id=info["client_id"],
        client_secret=info["client_secret"],
        token_uri="https://oauth2.googleapis.com/token",
    )
    return MailboxCredentials(mailbox, PARAMETER, google, json.dumps(info))


def account(info: dict[str, str], mailbox: str = ANNA) -> MailboxCredentials:
    google = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
        info, scopes=SCOPES, subject=mailbox
    )
    return MailboxCredentials(mailbox, PARAMETER, google, json.dumps(info))


class Import:
    """A GmailImport of some bytes."""

    def __init__(
        self,
        credentials: MailboxCredentials,
        raw: bytes = EMAIL,
        labels: tuple[str, ...] = ("INBOX",),
    ) -> None:
        self.raw = raw
        self.sent: list[tuple[int, int]] = []
        self.seconds = 300.0
        self.gmail = GmailImport(credentials, OWN, labels, len(raw), lambda: self.seconds)

    def read(self, begin: int, length: int) -> bytes:
        self.sent.append((begin, length))
        return self.raw[begin : begin + length]

    def upload(self, session: str, begin: int = 0) -> str:
        return self.gmail.upload(session, begin, self.read)

    def run(self) -> str:
        return self.upload(self.gmail.start())


@pytest.fixture
def anna(google: Google) -> Iterator[Import]:
    made = Import(user(google.add_mailbox(ANNA)))
    yield made
    made.gmail.close()


@pytest.mark.parametrize(
    "raw", [EMAIL, LARGE, LARGE[: 8 * CHUNK_GRAIN]], ids=["odd", "large", "whole chunks"]
)
def test_an_import(google: Google, raw: bytes) -> None:
    made = Import(user(google.add_mailbox(ANNA)), raw, ("INBOX", "UNREAD"))
    message_id = made.run()
    (message,) = google.messages(ANNA)
    assert (message.id, message.labels) == (message_id, ("INBOX", "UNREAD"))
    assert message.raw == raw
    assert message.query == {
        "internalDateSource": "receivedTime",
        "processForCalendar": "true",
        "neverMarkSpam": "false",
    }
    assert google.requests["start"] == 1
    made.gmail.close()


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (Fault("start", 400, "invalidArgument"), GmailRejectedError, "invalidArgument"),
        (Fault("start", 400, html=True), GmailRejectedError, "400"),
        (Fault("start", 404, "notFound"), GmailRejectedError, "notFound"),
        (Fault("start", 413, "uploadTooLarge"), GmailRejectedError, "uploadTooLarge"),
        (Fault("start", 403, "rateLimitExceeded"), GmailTemporaryError, "rateLimitExceeded"),
        (
            Fault("start", 403, "userRateLimitExceeded"),
            GmailTemporaryError,
            "userRateLimitExceeded",
        ),
        (Fault("start", 403, "dailyLimitExceeded"), GmailTemporaryError, "dailyLimitExceeded"),
        (Fault("start", 403, "quotaExceeded"), GmailTemporaryError, "quotaExceeded"),
        (
            Fault("start", 403, "insufficientPermissions"),
            GmailTokenError,
            "insufficientPermissions",
        ),
        (Fault("start", 403, "domainPolicy"), GmailTokenError, "domainPolicy"),
        (Fault("start", 403, "forbidden"), GmailTokenError, "forbidden"),
        (Fault("start", 403, html=True), GmailTokenError, "403"),
        (Fault("start", 408, "timeout"), GmailTemporaryError, "timeout"),
        (
            Fault("start", 429, "rateLimitExceeded", headers={"Retry-After": "3600"}),
            GmailTemporaryError,
            "rateLimitExceeded",
        ),
        (Fault("start", 429, html=True), GmailTemporaryError, "429"),
        (Fault("start", 500, "backendError"), GmailTemporaryError, "backendError"),
        (Fault("start", 502, html=True), GmailTemporaryError, "502"),
        (Fault("start", 503, "backendError"), GmailTemporaryError, "backendError"),
        (Fault("start", 503, body=b'{"error": []}'), GmailTemporaryError, "503"),
        (Fault("start", 503, body=b'{"error": {"errors": []}}'), GmailTemporaryError, "503"),
        (Fault("start", 503, body=b"\xff"), GmailTemporaryError, "503"),
        (Fault("start", 504, html=True), GmailTemporaryError, "504"),
        # An answer without what it must have: no Location.
        (Fault("start", 200, body=b"{}"), GmailTemporaryError, "200"),
        (Fault("start", 425, html=True), GmailTemporaryError, "425"),
        # Every 5xx, whoever stands in the way.
        (Fault("start", 501, html=True), GmailTemporaryError, "501"),
        (Fault("start", 505, html=True), GmailTemporaryError, "505"),
        (Fault("start", 507, html=True), GmailTemporaryError, "507"),
        (Fault("start", 520, html=True), GmailTemporaryError, "520"),
        (Fault("start", 529, html=True), GmailTemporaryError, "529"),
        (Fault("start", kind="reset", times=None), GmailTemporaryError, ""),
        (Fault("last_chunk", 400, "invalidArgument"), GmailRejectedError, "invalidArgument"),
        (Fault("last_chunk", 413, "uploadTooLarge"), GmailRejectedError, "uploadTooLarge"),
        (Fault("last_chunk", 403, "forbidden"), GmailTokenError, "forbidden"),
        (Fault("last_chunk", 429, "rateLimitExceeded"), GmailTemporaryError, "rateLimitExceeded"),
        (Fault("last_chunk", 503, "backendError"), GmailTemporaryError, "backendError"),
        (Fault("last_chunk", kind="reset", times=None), GmailTemporaryError, ""),
        (Fault("last_chunk", 308), GmailTemporaryError, "no_progress"),
        (
            Fault("last_chunk", 308, headers={"Range": "rubbish"}),
            GmailTemporaryError,
            "no_progress",
        ),
        (Fault("token", kind="reset", times=None), GmailTemporaryError, ""),
    ],
    ids=lambda value: (
        f"{value.on} {value.status if value.kind == 'status' else value.kind}{' HTML' * value.html}"
        if isinstance(value, Fault)
        else None
    ),
)
def test_googles_answers(
    google: Google, anna: Import, fault: Fault, error: type[Exception], code: str
) -> None:
    google.faults.append(fault)
    with pytest.raises(error) as raised:
        anna.run()
    if code:
        assert raised.value.code == code  # type: ignore[attr-defined]
    assert google.messages(ANNA) == []


def test_what_the_operator_reads(google: Google, anna: Import) -> None:
    google.faults.append(Fault("start", 403, "forbidden", message=f"Delegation denied for {ANNA}"))
    with pytest.raises(GmailTokenError) as raised:
        anna.run()
    assert str(raised.value) == (
        f"Gmail answered 403 forbidden for {ANNA}: Delegation denied for {ANNA} "
        f"(used parameter {PARAMETER}); put credentials that may act for {ANNA} into parameter "
        f"{OWN}"
    )


def test_a_token_of_somebody_else_is_refused_by_google_itself(google: Google) -> None:
    google.add_mailbox("ben@example.com")
    wrong = Import(user(google.add_mailbox(ANNA), "ben@example.com"))
    with pytest.raises(GmailTokenError, match="Delegation denied") as raised:
        wrong.run()
    assert raised.value.code == "forbidden"
    assert google.messages("ben@example.com") == []


def test_a_token_without_the_scope(google: Google) -> None:
    reader = Import(user(google.add_mailbox(ANNA, scopes=[SCOPE_READONLY])))
    with pytest.raises(GmailTokenError) as raised:
        reader.run()
    assert raised.value.code == "insufficientPermissions"


def test_401_for_ever(google: Google, anna: Import) -> None:
    google.faults.append(Fault("start", 401, "authError", times=None))
    with pytest.raises(GmailTokenError) as raised:
        anna.run()
    assert raised.value.code == "authError"
    assert google.requests["start"] == 3, "after two refreshes of the library's own"


@pytest.mark.parametrize("on", ["start", "last_chunk"])
def test_401_then_refreshed(google: Google, anna: Import, on: str) -> None:
    google.faults.append(Fault(on, 401, "authError"))
    message_id = anna.run()
    assert [m.id for m in google.messages(ANNA)] == [message_id]
    assert google.messages(ANNA)[0].raw == EMAIL
    assert google.requests["token"] == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, "invalid_grant"),
        ({"client_id": "other"}, "invalid_client"),
        ({"client_secret": "other"}, "invalid_client"),
        ({"refresh_token": "1//unknown"}, "invalid_grant"),
    ],
)
def test_a_dead_refresh_token(google: Google, change: dict[str, str], code: str) -> None:
    info = google.add_mailbox(ANNA)
    if not change:
        google.revoke(ANNA)
    with pytest.raises(GmailTokenError) as raised:
        Import(user({**info, **change})).run()
    assert raised.value.code == code
    assert PARAMETER in str(raised.value)
    assert info["client_secret"] not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (
            Fault("token", 503, "internal_failure", times=None),
            GmailTemporaryError,
            "internal_failure",
        ),
        (Fault("token", 500, "server_error", times=None), GmailTemporaryError, "server_error"),
        (Fault("token", 502, html=True, times=None), GmailTemporaryError, ""),
        (Fault("token", 503, html=True, times=None), GmailTemporaryError, ""),
        (
            Fault("token", 429, "rate_limit_exceeded", times=None),
            GmailTemporaryError,
            "rate_limit_exceeded",
        ),
        (Fault("token", 200, body=b"{}", times=None), GmailTemporaryError, ""),
        (Fault("token", 200, body=b"rubbish", times=None), GmailTemporaryError, ""),
        *(
            (Fault("token", status, code, times=None), GmailTokenError, code)
            for status, code in (
                (400, "invalid_scope"),
                (400, "invalid_request"),
                (400, "access_denied"),
                (400, "unsupported_grant_type"),
                (400, "invented_tomorrow"),
                (401, "deleted_client"),
                (401, "disabled_client"),
                (403, "org_internal"),
            )
        ),
        *(
            (Fault("token", 400, code, times=None), GmailTemporaryError, code)
            for code in (
                "internal_failure",
                "server_error",
                "temporarily_unavailable",
                "rate_limit_exceeded",
            )
        ),
        # google-auth tells nobody which error that was.
        (
            Fault(
                "token",
                400,
                body=b'{"error": "invalid_grant", "error_subtype": "invalid_rapt"}',
                times=None,
            ),
            GmailTokenError,
            "invalid_rapt",
        ),
        (Fault("token", 400, html=True, times=None), GmailTemporaryError, ""),
        (
            Fault("token", 400, body=b'{"error": {"code": 400}}', times=None),
            GmailTemporaryError,
            "",
        ),
        (
            Fault("token", 401, "unauthorized_client", times=None),
            GmailTokenError,
            "unauthorized_client",
        ),
    ],
)
def test_the_token_endpoint(
    google: Google, anna: Import, fault: Fault, error: type[Exception], code: str
) -> None:
    google.faults.append(fault)
    with pytest.raises(error) as raised:
        anna.run()
    if code:
        assert raised.value.code == code  # type: ignore[attr-defined]


def test_a_token_endpoint_that_recovers(google: Google, anna: Import) -> None:
    google.faults.append(Fault("token", 503, "internal_failure", times=1))
    anna.run()
    assert len(google.messages(ANNA)) == 1


def test_service_account(google: Google) -> None:
    Import(account(google.add_service_account([ANNA]))).run()
    assert len(google.messages(ANNA)) == 1


def test_service_account_without_delegation_for_the_mailbox(google: Google) -> None:
    google.add_mailbox(ANNA)
    info = google.add_service_account(["ben@example.com"])
    with pytest.raises(GmailTokenError) as raised:
        Import(account(info)).run()
    assert raised.value.code == "unauthorized_client"


def test_nobody_answers(google: Google, anna: Import) -> None:
    google.stop()
    with pytest.raises(GmailTemporaryError, match="no answer from Google"):
        anna.run()


def test_a_hanging_connection_times_out(google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gmail, "_LONGEST_WAIT", 0.3)
    monkeypatch.setattr(gmail, "_SHORTEST_WAIT", 0.1)
    google.faults.append(Fault("start", kind="hang"))
    with pytest.raises(GmailTemporaryError) as raised:
        Import(user(google.add_mailbox(ANNA))).run()
    assert raised.value.code == "TimeoutError"


@pytest.mark.parametrize("token", [None, "ya29.x"], ids=["token endpoint", "Gmail"])
def test_a_certificate_of_somebody_else_may_be_gone_later(
    google: Google, anna: Import, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    anna.gmail._http.credentials.token = token
    # One transport for Gmail, and for tokens as well.
    monkeypatch.setattr(httplib2, "CA_CERTS", certifi.where())
    monkeypatch.setattr(anna.gmail._http.http, "ca_certs", certifi.where())
    with pytest.raises(GmailTemporaryError) as raised:
        anna.gmail.start()
    assert "SSLCertVerificationError" in (
        raised.value.code,
        type(raised.value.__context__).__name__,
    )
    assert google.messages(ANNA) == []


def test_the_host_name_is_unknown(
    google: Google, anna: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://no-such-host.invalid:1")
    fresh = Import(user(google.add_mailbox(ANNA)))
    with pytest.raises(GmailTemporaryError):
        fresh.run()


# -- the state of a session ------------------------------------------------------------------------


def test_progress_of_a_fresh_session(anna: Import) -> None:
    assert anna.gmail.progress(anna.gmail.start()) == (0, None)


@pytest.mark.parametrize("when", ["before", "mid", "after"])
def test_a_reset_in_the_middle(google: Google, when: str) -> None:
    made = Import(user(google.add_mailbox(ANNA)), LARGE)
    session = made.gmail.start()
    google.faults.append(Fault("chunk", kind="reset", when=when, times=None))
    with pytest.raises(GmailTemporaryError):
        made.upload(session)
    google.faults.clear()
    received, message_id = made.gmail.progress(session)
    assert message_id is None
    assert received % CHUNK_GRAIN == 0
    assert (received > 0) is (when != "before")
    made.sent.clear()
    made.upload(session, received)
    assert made.sent[0][0] == received
    assert [m.raw for m in google.messages(ANNA)] == [LARGE]


def test_the_answer_is_lost_after_the_last_byte(google: Google, anna: Import) -> None:
    session = anna.gmail.start()
    google.faults.append(Fault("last_chunk", kind="reset", when="after", times=None))
    with pytest.raises(GmailTemporaryError):
        anna.upload(session)
    (message,) = google.messages(ANNA)
    assert anna.gmail.progress(session) == (len(EMAIL), message.id)


@pytest.mark.parametrize("body", [b"", b"rubbish", b"[]", b"{}"])
@pytest.mark.parametrize("status", [200, 201])
def test_a_finished_session_need_not_repeat_its_answer(
    google: Google, anna: Import, body: bytes, status: int
) -> None:
    session = anna.gmail.start()
    google.faults.append(Fault("status", status, body=body))
    assert anna.gmail.progress(session) == (len(EMAIL), "")


@pytest.mark.parametrize("status", [404, 410])
def test_a_session_may_be_gone(google: Google, anna: Import, status: int) -> None:
    session = anna.gmail.start()
    google.faults.append(Fault("status", status, "notFound"))
    with pytest.raises(SessionGoneError):
        anna.gmail.progress(session)
    with pytest.raises(SessionGoneError):
        anna.upload(session)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        *((Fault("status", status, "x"), SessionGoneError) for status in (400, 403, 409, 412, 416)),
        # Asked again with a new token, the session may still say that it is finished.
        (Fault("status", 401, "authError", times=None), SessionGoneError),
        (Fault("status", 403, "rateLimitExceeded"), GmailTemporaryError),
        (Fault("status", 429, "x"), GmailTemporaryError),
        (Fault("status", 503, "x"), GmailTemporaryError),
        (Fault("status", kind="reset", times=None), GmailTemporaryError),
        (Fault("token", 400, "invalid_grant", times=None), GmailTokenError),
    ],
    ids=lambda value: (
        f"{value.on} {value.status} {value.reason}" if isinstance(value, Fault) else ""
    ),
)
def test_a_status_request_that_is_refused(
    google: Google, anna: Import, fault: Fault, error: type[Exception]
) -> None:
    """A session that is refused and kept would refuse each redrive."""
    session = anna.gmail.start()
    if fault.on == "token":
        anna.gmail._http.credentials.expiry = datetime(2026, 1, 1)  # noqa: DTZ001 (google-auth's)
    google.faults.append(fault)
    with pytest.raises(error):
        anna.gmail.progress(session)


@pytest.mark.parametrize(
    "ask",
    [
        lambda made, session: made.gmail.start(),
        lambda made, session: made.gmail.progress(session),
        lambda made, session: made.upload(session),
    ],
    ids=["start", "status", "chunk"],
)
def test_nothing_is_asked_without_time_for_the_answer(
    google: Google, anna: Import, ask: Callable[[Import, str], object]
) -> None:
    session = anna.gmail.start()
    before = dict(google.requests)
    anna.seconds = gmail.TIME_TO_END + gmail._WAITS * gmail._SHORTEST_WAIT - 0.1
    with pytest.raises(GmailTemporaryError) as raised:
        ask(anna, session)
    assert raised.value.code == "out_of_time"
    assert google.requests == before


@pytest.mark.parametrize(("seconds", "wait"), [(300.0, 60.0), (105.0, 20.0), (46.0, 5.25)])
def test_a_wait_is_cut_to_what_is_left(
    google: Google, anna: Import, seconds: float, wait: float
) -> None:
    """Of a connection that is open already, too."""
    session = anna.gmail.start()
    anna.seconds = seconds
    anna.gmail.progress(session)
    waits = {c.sock.gettimeout() for c in anna.gmail._transport.connections.values()}
    assert wait in waits
    assert anna.gmail._transport.timeout == wait


def test_partial_progress_of_a_chunk_is_gone_on_from(google: Google) -> None:
    made = Import(user(google.add_mailbox(ANNA)), LARGE)
    google.faults.append(
        Fault("chunk", 308, headers={"Range": f"bytes=0-{CHUNK_GRAIN - 1}"}, when="mid")
    )
    session = made.gmail.start()
    made.upload(session)
    assert made.sent[1][0] == CHUNK_GRAIN
    assert google.messages(ANNA)[0].raw == LARGE


def test_out_of_time_between_chunks(google: Google) -> None:
    made = Import(user(google.add_mailbox(ANNA)), LARGE)
    session = made.gmail.start()

    def read(begin: int, length: int) -> bytes:
        made.seconds = gmail._TIME_FOR_CHUNK - 0.1  # enough for this chunk, not for the next
        return made.read(begin, length)

    with pytest.raises(GmailTemporaryError, match="out of time after 1048576 bytes") as raised:
        made.gmail.upload(session, 0, read)
    assert raised.value.code == "out_of_time"
    made.seconds = 300.0
    assert made.gmail.progress(session) == (4 * CHUNK_GRAIN, None)


def test_all_bytes_are_there_but_the_end_was_never_told(google: Google, anna: Import) -> None:
    """What is left is empty, and an empty chunk has no range: the session is asked instead."""
    session = anna.gmail.start()
    anna.upload(session)
    assert anna.upload(session, len(EMAIL)) == google.messages(ANNA)[0].id


def test_an_announced_body_tells_what_the_library_asks() -> None:
    announced = gmail._Announced(7)
    assert (announced.size(), announced.mimetype(), announced.resumable()) == (
        7,
        "message/rfc822",
        True,
    )
    assert announced.chunksize() % CHUNK_GRAIN == 0


def test_the_session_is_never_part_of_an_error(google: Google, anna: Import) -> None:
    session = anna.gmail.start()
    for fault in (
        Fault("last_chunk", 400, "x"),
        Fault("last_chunk", 503, "x"),
        Fault("status", 503, "x"),
    ):
        google.faults[:] = [fault]
        with pytest.raises((GmailRejectedError, GmailTemporaryError, GmailTokenError)) as raised:
            (anna.gmail.progress if fault.on == "status" else anna.upload)(session)
        assert "upload_id" not in str(raised.value)
        assert session.rpartition("=")[2] not in str(raised.value)
