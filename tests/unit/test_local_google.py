"""The small Google, asked by the real client library over CONNECT and TLS."""

import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import google_auth_httplib2
import httplib2
import pytest
import requests
import socks  # noqa: F401 - without PySocks httplib2 ignores the proxy and asks the real Google
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials
from google_auth_oauthlib.flow import Flow
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError
from googleapiclient.http import MediaInMemoryUpload, build_http
from oauthlib.oauth2 import InvalidClientError, InvalidGrantError

from local.google import CHUNK_GRAIN, SCOPE_INSERT, SCOPE_READONLY, Fault, Google

ANNA, BEN = "anna@example.com", "ben@example.com"
EMAIL = b"Subject: hello\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n\r\nbody\r\n"
ODD = b"Subject: \xff\xfe8-bit\r\n\r\nNUL \x00, bare CR \r, bare LF \n, no final newline \x80"
LARGE = b"Subject: large\r\n\r\n" + bytes(range(256)) * 4096  # just over 1 MiB: five chunks


@pytest.fixture
def google(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    with Google(directory=tmp_path) as server:
        for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", server.url)
        # HTTPLIB2_CA_CERTS is read once, at import.
        monkeypatch.setattr(httplib2, "CA_CERTS", str(server.ca_file))
        monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
        yield server


def gmail(credentials: Any, timeout: float = 10) -> Any:
    http = build_http()
    http.timeout = timeout
    authorized = google_auth_httplib2.AuthorizedHttp(credentials, http=http)
    return build("gmail", "v1", http=authorized, static_discovery=True)


def user(info: dict[str, str], **more: Any) -> Any:
    return Credentials.from_authorized_user_info(info, **more)


def request_for(service: Any, raw: bytes, user_id: str = ANNA, **options: Any) -> Any:
    chunk = options.pop("chunksize", CHUNK_GRAIN)
    media = MediaInMemoryUpload(raw, "message/rfc822", chunksize=chunk, resumable=True)
    media.has_stream = lambda: False  # bytes can be sent again
    options.setdefault("body", {"labelIds": ["INBOX", "UNREAD"]})
    return service.users().messages().import_(userId=user_id, media_body=media, **options)


def finish(request: Any) -> dict[str, Any]:
    answer = None
    while answer is None:
        _, answer = request.next_chunk()
    return answer


def reason(error: HttpError) -> str:
    return json.loads(error.content)["error"]["errors"][0]["reason"]


def plain(
    google: Google, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(google.host, google.port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def access_token(google: Google, address: str = ANNA, **more: Any) -> str:
    form = google.add_mailbox(address, **more) | {"grant_type": "refresh_token"}
    status, _, content = plain(google, "POST", "/token", urlencode(form).encode())
    assert status == 200
    return str(json.loads(content)["access_token"])


# -- the way in -------------------------------------------------------------------------------


def test_unmodified_code_needs_only_two_environment_variables(google: Google) -> None:
    program = """
import json, sys, google_auth_httplib2
from google.oauth2.credentials import Credentials
from googleapiclient.discovery import build
from googleapiclient.http import MediaInMemoryUpload, build_http
credentials = Credentials.from_authorized_user_info(json.load(sys.stdin))
http = google_auth_httplib2.AuthorizedHttp(credentials, http=build_http())
service = build("gmail", "v1", http=http, static_discovery=True)
media = MediaInMemoryUpload(b"Subject: x", "message/rfc822", resumable=True)
request = service.users().messages().import_(userId="anna@example.com", media_body=media)
print(request.next_chunk()[1]["id"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=json.dumps(google.add_mailbox(ANNA)),
        env={
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HTTPS_PROXY": google.url,
            "HTTPLIB2_CA_CERTS": str(google.ca_file),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == google.messages(ANNA)[0].id


@pytest.mark.parametrize("address", ["example.com:443", "gmail.googleapis.com:80"])
def test_other_tunnels_are_refused(google: Google, address: str) -> None:
    assert plain(google, "CONNECT", address)[0] == 403


def test_certificate_holds_under_the_strict_checks_of_python_3_13(google: Google) -> None:
    context = ssl.create_default_context(cafile=str(google.ca_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    connection = http.client.HTTPSConnection(google.host, google.port, context=context, timeout=10)
    connection.set_tunnel("oauth2.googleapis.com", 443)
    connection.request("POST", "/token", b"")
    assert connection.getresponse().status == 400
    connection.close()


def test_a_taken_port_is_an_error(google: Google) -> None:
    with pytest.raises(OSError, match="in use"):
        Google(port=google.port).start()


def test_stop_ends_open_connections_and_hanging_requests(google: Google) -> None:
    google.faults.append(Fault(on="token", kind="hang"))
    connection = http.client.HTTPConnection(google.host, google.port, timeout=10)
    connection.request("POST", "/token", b"")
    google.stop()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        connection.getresponse()
    connection.close()


# -- imports ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "chunks"),
    [(EMAIL, 1), (ODD, 1), (LARGE[: 4 * CHUNK_GRAIN], 4), (LARGE, 5)],
    ids=["plain", "8-bit, NUL, bare CR", "exactly four chunks", "five chunks"],
)
def test_resumable_import_is_byte_exact(google: Google, raw: bytes, chunks: int) -> None:
    service = gmail(user(google.add_mailbox(ANNA)))
    answer = finish(
        request_for(service, raw, internalDateSource="receivedTime", processForCalendar=True)
    )
    (message,) = google.messages(ANNA)
    assert message.raw == raw
    assert message.labels == ("INBOX", "UNREAD")
    assert message.query == {"internalDateSource": "receivedTime", "processForCalendar": "true"}
    assert answer == {
        "id": message.id,
        "threadId": message.id,
        "labelIds": ["INBOX", "UNREAD"],
    }
    assert google.requests == {
        "token": 1,
        "start": 1,
        "last_chunk": 1,
        **({"chunk": chunks - 1} if chunks > 1 else {}),
    }


@pytest.mark.parametrize(
    ("source", "is_header"), [("receivedTime", False), ("dateHeader", True), (None, True)]
)
def test_internal_date(google: Google, source: str | None, is_header: bool) -> None:
    service = gmail(user(google.add_mailbox(ANNA)))
    old = EMAIL.replace(b"2026", b"2020")
    finish(request_for(service, old, **({"internalDateSource": source} if source else {})))
    assert (google.messages(ANNA)[0].internal_date == 1606212000000) is is_header


def test_large_emails_leave_memory(google: Google) -> None:
    service = gmail(user(google.add_mailbox(ANNA)))
    finish(request_for(service, LARGE))
    finish(request_for(service, EMAIL))
    large, small = google.messages(ANNA)
    assert (large._file._rolled, small._file._rolled) == (True, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("raw", "options", "status", "why"),
    [
        (EMAIL, {"body": {"labelIds": ["Nonsense"]}}, 400, "invalidArgument"),
        (b"", {}, 400, "invalidArgument"),
        (LARGE, {"chunksize": 100_000}, 400, "badRequest"),
    ],
    ids=["unknown label", "empty email", "chunk not a multiple of 256 KiB"],
)
def test_bad_imports(
    google: Google, raw: bytes, options: dict[str, Any], status: int, why: str
) -> None:
    with pytest.raises(HttpError) as refused:
        finish(request_for(gmail(user(google.add_mailbox(ANNA))), raw, **options))
    assert (refused.value.status_code, reason(refused.value)) == (status, why)
    assert google.messages(ANNA) == []


@pytest.mark.parametrize(
    ("upload_type", "headers", "body", "status"),
    [
        ("resumable", {}, b"{", 400),
        ("resumable", {"X_Upload_Content_Type": "text/plain"}, b"{}", 400),
        ("resumable", {"X_Upload_Content_Length": "157286401"}, b"{}", 413),
        ("media", {"Content_Type": "message/rfc822"}, EMAIL, 400),
        ("multipart", {"Content_Type": "multipart/related; boundary=x"}, EMAIL, 400),
    ],
)
def test_bad_uploads_by_hand(
    google: Google, upload_type: str, headers: dict[str, str], body: bytes | None, status: int
) -> None:
    path = f"/upload/gmail/v1/users/{ANNA}/messages/import?uploadType={upload_type}"
    token = access_token(google)
    answered, _, content = plain(
        google, "POST", path, body, Authorization=f"Bearer {token}", **headers
    )
    assert (answered, json.loads(content)["error"]["code"]) == (status, status)


# -- sessions ---------------------------------------------------------------------------------


def open_session(google: Google, size: int | None) -> str:
    headers = {"X_Upload_Content_Length": str(size)} if size is not None else {}
    path = f"/resumable/upload/gmail/v1/users/{ANNA}/messages/import?uploadType=resumable"
    status, answered, _ = plain(
        google,
        "POST",
        path,
        b'{"labelIds": ["INBOX"]}',
        Authorization=f"Bearer {access_token(google)}",
        Content_Type="application/json",
        **headers,
    )
    assert status == 200
    address = urlsplit(answered["Location"])
    assert f"{address.scheme}://{address.netloc}" == google.url
    return f"{address.path}?{address.query}"


def test_session_by_hand(google: Google) -> None:
    """Another process may finish an upload with the address alone."""
    size = len(LARGE)
    session = open_session(google, size)
    first = LARGE[: 2 * CHUNK_GRAIN]

    def put(body: bytes, content_range: str) -> tuple[int, str | None, bytes]:
        status, headers, content = plain(google, "PUT", session, body, Content_Range=content_range)
        return status, headers.get("Range"), content

    for total in (str(size), "*"):
        assert put(b"", f"bytes */{total}") == (308, None, b"")
    assert put(first, f"bytes 0-{len(first) - 1}/*") == (308, f"bytes=0-{len(first) - 1}", b"")
    assert put(b"", f"bytes */{size}") == (308, f"bytes=0-{len(first) - 1}", b"")
    assert put(LARGE[-9:], f"bytes {size - 9}-{size - 1}/{size}")[0] == 400, "a gap"
    assert put(first, f"bytes 0-{len(first) - 1}/{size + 1}")[0] == 400, "another length"
    assert put(first[1:], f"bytes 0-{len(first) - 1}/{size}")[0] == 400, "not what it says"
    assert put(first, "chunk one")[0] == 400
    # Bytes that are here already are passed over.
    status, _, content = put(LARGE, f"bytes 0-{size - 1}/{size}")
    (message,) = google.messages(ANNA)
    assert (status, json.loads(content)["id"], message.raw) == (200, message.id, LARGE)
    # A finished session says so again, however it is asked, and imports nothing more.
    for body, content_range in ((b"", f"bytes */{size}"), (LARGE, f"bytes 0-{size - 1}/{size}")):
        status, _, content = put(body, content_range)
        assert (status, json.loads(content)["id"]) == (200, message.id)
    assert len(google.messages(ANNA)) == 1
    google.forget_finished = True
    assert put(b"", f"bytes */{size}")[0] == 404


def test_unknown_session_is_not_found(google: Google) -> None:
    session = open_session(google, len(EMAIL)).replace("upload_id=", "upload_id=x")
    assert plain(google, "PUT", session, EMAIL)[0] == 404


def test_session_of_another_mailbox_is_refused(google: Google) -> None:
    session = open_session(google, len(EMAIL))
    token = access_token(google, BEN)
    assert plain(google, "PUT", session, EMAIL, Authorization=f"Bearer {token}")[0] == 403


def test_client_that_dies_in_a_chunk_leaves_whole_units(google: Google) -> None:
    session = open_session(google, len(LARGE))
    connection = http.client.HTTPConnection(google.host, google.port, timeout=10)
    connection.putrequest("PUT", session)
    connection.putheader("Content-Length", str(len(LARGE)))
    connection.endheaders()
    connection.send(LARGE[: CHUNK_GRAIN + 1000])
    connection.sock.shutdown(1)
    connection.getresponse().read()  # the server has seen the end of the stream
    connection.close()
    _, headers, _ = plain(google, "PUT", session, b"", Content_Range=f"bytes */{len(LARGE)}")
    assert headers["Range"] == f"bytes=0-{CHUNK_GRAIN - 1}"


# -- rights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", [BEN, "anna+x@example.com", "nobody@example.com"])
def test_delegation_denied(google: Google, user_id: str) -> None:
    google.add_mailbox(BEN)
    service = gmail(user(google.add_mailbox(ANNA)))
    with pytest.raises(HttpError) as refused:
        finish(request_for(service, EMAIL, user_id))
    assert json.loads(refused.value.content) == {
        "error": {
            "code": 403,
            "message": f"Delegation denied for {ANNA}",
            "errors": [
                {
                    "message": f"Delegation denied for {ANNA}",
                    "domain": "global",
                    "reason": "forbidden",
                }
            ],
            "status": "PERMISSION_DENIED",
        }
    }
    assert google.messages(BEN) == []


@pytest.mark.parametrize("user_id", ["me", "Anna@Example.COM"])
def test_ones_own_mailbox_in_other_words(google: Google, user_id: str) -> None:
    finish(request_for(gmail(user(google.add_mailbox(ANNA))), EMAIL, user_id))
    assert len(google.messages(ANNA)) == 1


def test_missing_scope(google: Google) -> None:
    info = google.add_mailbox(ANNA, scopes=[SCOPE_READONLY])
    with pytest.raises(HttpError) as refused:
        finish(request_for(gmail(user(info)), EMAIL))
    assert reason(refused.value) == "insufficientPermissions"
    assert refused.value.error_details[0]["reason"] == "ACCESS_TOKEN_SCOPE_INSUFFICIENT"


def test_revoked_token_and_its_successor(google: Google) -> None:
    info = google.add_mailbox(ANNA)
    service = gmail(user(info))
    finish(request_for(service, EMAIL))
    google.revoke(ANNA)
    with pytest.raises(RefreshError) as refused:  # 401, so the library asks for a new token
        finish(request_for(service, EMAIL))
    assert refused.value.args[1] == {
        "error": "invalid_grant",
        "error_description": "Token has been expired or revoked.",
    }
    finish(request_for(gmail(user(google.add_mailbox(ANNA))), EMAIL))
    assert len(google.messages(ANNA)) == 2


def test_access_token_expires_with_the_time_factor(
    google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    google.time_factor = 0.01
    service = gmail(user(google.add_mailbox(ANNA)))
    now = [1000.0]
    monkeypatch.setattr("local.google.time.monotonic", lambda: now[0])
    finish(request_for(service, EMAIL))
    now[0] += 35.98
    finish(request_for(service, EMAIL))
    assert google.requests["token"] == 1
    now[0] += 0.02
    finish(request_for(service, EMAIL))
    assert google.requests["token"] == 2


@pytest.mark.parametrize("authorization", ["", "Bearer ya29.unknown"])
def test_no_valid_access_token(google: Google, authorization: str) -> None:
    google.add_mailbox(ANNA)
    path = f"/gmail/v1/users/{ANNA}/messages"
    headers = {"Authorization": authorization} if authorization else {}
    status, answered, content = plain(google, "GET", path, **headers)
    error = json.loads(content)["error"]
    assert (status, error["status"]) == (401, "UNAUTHENTICATED")
    assert error["errors"][0]["reason"] == ("authError" if authorization else "required")
    assert "WWW-Authenticate" in answered


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"refresh_token": "1//unknown"}, 400, "invalid_grant"),
        ({"client_id": "other"}, 401, "invalid_client"),
        ({"client_secret": "other"}, 401, "invalid_client"),
        ({"scope": "https://mail.google.com/"}, 400, "invalid_scope"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}, 400, "invalid_grant"),
    ],
)
def test_token_refusals(google: Google, change: dict[str, str], status: int, error: str) -> None:
    form = google.add_mailbox(ANNA) | {"grant_type": "refresh_token"} | change
    answered, _, content = plain(google, "POST", "/token", urlencode(form).encode())
    assert (answered, json.loads(content)["error"]) == (status, error)


def delegated(info: dict[str, str], subject: str) -> Any:
    return service_account.Credentials.from_service_account_info(
        info, scopes=[SCOPE_INSERT], subject=subject
    )


def test_service_account_acts_for_its_subjects(google: Google) -> None:
    info = google.add_service_account([ANNA, BEN])
    for mailbox in (ANNA, BEN):
        finish(request_for(gmail(delegated(info, mailbox)), EMAIL, mailbox))
        assert len(google.messages(mailbox)) == 1
    with pytest.raises(HttpError, match=f"Delegation denied for {ANNA}"):
        finish(request_for(gmail(delegated(info, ANNA)), EMAIL, BEN))


@pytest.mark.parametrize(
    ("subject", "change", "error"),
    [
        ("eve@example.com", {}, "unauthorized_client"),
        (ANNA, {"private_key": "another"}, "Invalid JWT Signature"),
        (ANNA, {"client_email": "nobody@local.iam.gserviceaccount.com"}, "account not found"),
    ],
)
def test_service_account_refusals(
    google: Google, subject: str, change: dict[str, str], error: str
) -> None:
    info = google.add_service_account([ANNA])
    if "private_key" in change:
        change = {"private_key": google.add_service_account([ANNA])["private_key"]}
    with pytest.raises(RefreshError, match=error):
        finish(request_for(gmail(delegated(info | change, subject)), EMAIL))


# -- reading back -----------------------------------------------------------------------------


def read(google: Google, path: str) -> Any:
    status, _, content = plain(google, "GET", path, Authorization=f"Bearer {google.reader_token}")
    return json.loads(content) | {"http": status}


def test_reader_lists_and_gets_every_mailbox(google: Google) -> None:
    for mailbox, raw in ((ANNA, ODD), (BEN, EMAIL)):
        finish(request_for(gmail(user(google.add_mailbox(mailbox))), raw, mailbox))
        box = f"/gmail/v1/users/{mailbox.replace('@', '%40')}/messages"
        (entry,) = read(google, box)["messages"]
        got = read(google, f"{box}/{entry['id']}?format=raw")
        assert base64.urlsafe_b64decode(got["raw"]) == raw
        assert (got["labelIds"], got["sizeEstimate"]) == (["INBOX", "UNREAD"], len(raw))
    got = read(google, f"{box}/{entry['id']}?format=metadata")
    assert {"name": "Subject", "value": "hello"} in got["payload"]["headers"]
    assert "payload" not in read(google, f"{box}/{entry['id']}?format=minimal")
    assert read(google, f"{box}/{entry['id']}")["http"] == 400
    assert read(google, f"{box}/unknown?format=raw")["http"] == 404
    assert read(google, "/gmail/v1/users/nobody@example.com/messages")["http"] == 404


def test_the_real_client_reads_with_its_own_scope(google: Google) -> None:
    info = google.add_mailbox(ANNA, scopes=[SCOPE_INSERT, SCOPE_READONLY])
    service = gmail(user(info))
    sent = finish(request_for(service, EMAIL))
    messages = service.users().messages()
    assert messages.list(userId=ANNA).execute()["messages"][0]["id"] == sent["id"]
    got = messages.get(userId=ANNA, id=sent["id"], format="raw").execute()
    assert base64.urlsafe_b64decode(got["raw"]) == EMAIL


def test_insert_scope_does_not_read(google: Google) -> None:
    token = access_token(google)
    path = f"/gmail/v1/users/{ANNA}/messages"
    assert plain(google, "GET", path, Authorization=f"Bearer {token}")[0] == 403


def test_pages_and_labels(google: Google) -> None:
    service = gmail(user(google.add_mailbox(ANNA)))
    ids = [
        finish(request_for(service, EMAIL, body={"labelIds": labels}))["id"]
        for labels in (["INBOX", "UNREAD"], ["SPAM"], ["INBOX"], ["INBOX", "UNREAD"])
    ]
    box = f"/gmail/v1/users/{ANNA}/messages"

    def listed(query: str) -> list[int]:
        return [ids.index(m["id"]) for m in read(google, f"{box}?{query}").get("messages", [])]

    assert listed("") == [3, 2, 0]
    assert listed("includeSpamTrash=true") == [3, 2, 1, 0]
    assert listed("labelIds=SPAM") == [1]
    assert listed("labelIds=INBOX&labelIds=UNREAD") == [3, 0]
    assert listed("labelIds=TRASH") == []
    page = read(google, f"{box}?maxResults=2")
    finish(request_for(service, EMAIL))  # new mail doesn't shift the next page
    assert listed(f"maxResults=2&pageToken={page['nextPageToken']}") == [0]
    for query in ("maxResults=501", "maxResults=x", "q=subject:x"):
        assert read(google, f"{box}?{query}")["http"] == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/gmail/v1/users/me/messages/send"),
        ("GET", "/token"),
        ("DELETE", "/gmail/v1/users/me/messages/1"),
    ],
)
def test_everything_else_is_not_served(google: Google, method: str, path: str) -> None:
    assert plain(google, method, path)[0] in (404, 501)


# -- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "failures", "requests"),
    [
        (Fault("start", 429, "rateLimitExceeded"), 1, {"start": 2}),
        (Fault("start", 503, when="after"), 1, {"start": 2}),
        (Fault("start", kind="hang", seconds=0.01, times=2), None, {"start": 3}),
        (Fault("chunk", 500), 1, {"status": 1, "chunk": 2, "last_chunk": 1}),
        # httplib2 sends some requests again by itself when the connection ends before the answer;
        # which, and so how often a fault is met and seen, depends on the version of Python.
        (Fault("chunk", kind="reset", times=2), None, {"chunk": 3, "last_chunk": 1}),
        (Fault("chunk", kind="reset", when="after", times=2), None, {"last_chunk": 1}),
        (Fault("last_chunk", 502, html=True), 1, {"status": 1, "last_chunk": 2}),
        (Fault("last_chunk", when="after"), 1, {"status": 1, "last_chunk": 1}),
        (Fault("last_chunk", kind="reset", when="after"), None, {}),
        (Fault("last_chunk", kind="reset", when="after", times=2), None, {}),
        (Fault("last_chunk", kind="hang", when="after"), 1, {"status": 1, "last_chunk": 1}),
        (Fault("last_chunk", kind="slow", seconds=0.01), 0, {"status": 0, "last_chunk": 1}),
        (Fault("last_chunk", 410, "gone"), 1, {"start": 2, "last_chunk": 2}),
    ],
    ids=lambda value: (
        f"{value.on} {value.when} {value.kind} {value.times}" if isinstance(value, Fault) else ""
    ),
)
def test_fault_then_the_client_goes_on(
    google: Google, fault: Fault, failures: int | None, requests: dict[str, int]
) -> None:
    """A lost answer is asked for, never imported twice."""
    service = gmail(user(google.add_mailbox(ANNA)), timeout=0.5)
    raw = LARGE[: CHUNK_GRAIN + 1]
    google.faults.append(replace(fault))
    request = request_for(service, raw)
    answer, failed = None, 0
    while answer is None:
        try:
            _, answer = request.next_chunk()
        except (HttpError, OSError, http.client.HTTPException) as error:
            failed += 1
            if isinstance(error, HttpError) and error.status_code == 410:
                request.resumable_uri, request.resumable_progress = None, 0
    assert fault.times
    least = 1 if failures is None else fault.times
    assert least <= google.faults[0].fired <= fault.times
    assert failures in (failed, None)
    assert {kind: google.requests[kind] for kind in requests} == requests
    (message,) = google.messages(ANNA)
    assert (message.raw, message.id) == (raw, answer["id"])


@pytest.mark.parametrize("kind", ["status", "reset"])
def test_half_a_chunk_is_kept(google: Google, kind: str) -> None:
    session = open_session(google, len(LARGE))
    google.faults.append(Fault("chunk", when="mid", kind=kind))
    chunk = LARGE[: 4 * CHUNK_GRAIN]
    sent = {"Content_Range": f"bytes 0-{len(chunk) - 1}/{len(LARGE)}"}
    if kind == "reset":
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            plain(google, "PUT", session, chunk, **sent)
    else:
        assert plain(google, "PUT", session, chunk, **sent)[0] == 503
    _, headers, _ = plain(google, "PUT", session, b"", Content_Range=f"bytes */{len(LARGE)}")
    kept = 2 * CHUNK_GRAIN
    assert headers["Range"] == f"bytes=0-{kept - 1}"
    rest = {"Content_Range": f"bytes {kept}-{len(LARGE) - 1}/{len(LARGE)}"}
    assert plain(google, "PUT", session, LARGE[kept:], **rest)[0] == 200
    assert google.messages(ANNA)[0].raw == LARGE


def test_answer_that_is_empty_although_all_is_done(google: Google) -> None:
    session = open_session(google, len(EMAIL))
    google.faults.append(Fault(on="last_chunk", status=201, body=b"", when="after"))
    assert plain(google, "PUT", session, EMAIL)[::2] == (201, b"")
    assert len(google.messages(ANNA)) == 1


@pytest.mark.parametrize(
    ("on", "call"),
    [
        ("status", lambda g, s: plain(g, "PUT", s, b"", Content_Range="bytes */9")),
        ("list", lambda g, _: plain(g, "GET", f"/gmail/v1/users/{ANNA}/messages")),
        ("get", lambda g, _: plain(g, "GET", f"/gmail/v1/users/{ANNA}/messages/1")),
    ],
)
def test_each_request_kind_can_fail(
    google: Google, on: str, call: Callable[[Google, str], tuple[int, dict[str, str], bytes]]
) -> None:
    session = open_session(google, 9)
    rule = Fault(
        on=on, status=429, reason="userRateLimitExceeded", headers={"Retry-After": "7"}, times=2
    )
    others = Fault(on=on, mailbox=BEN, times=None)
    google.faults += [others, rule]
    for _ in range(2):
        status, headers, content = call(google, session)
        error = json.loads(content)["error"]
        assert (status, headers["Retry-After"], error["status"]) == (429, "7", "RESOURCE_EXHAUSTED")
        assert error["errors"][0] == {
            "message": "userRateLimitExceeded",
            "domain": "usageLimits",
            "reason": "userRateLimitExceeded",
        }
    assert call(google, session)[0] != 429
    assert (rule.fired, others.fired) == (2, 0)


@pytest.mark.parametrize(
    ("fault", "retryable"),
    [
        (Fault(on="token", status=503, reason="internal_failure", times=None), True),
        (Fault(on="token", status=502, html=True, times=None), False),
    ],
    ids=["503 JSON", "502 HTML"],
)
def test_token_endpoint_down(google: Google, fault: Fault, retryable: bool) -> None:
    service = gmail(user(google.add_mailbox(ANNA)))
    google.faults.append(fault)
    with pytest.raises(RefreshError) as failed:
        finish(request_for(service, EMAIL))
    assert failed.value.retryable is retryable
    google.faults.clear()
    finish(request_for(service, EMAIL))


def test_token_fault_of_one_mailbox(google: Google) -> None:
    accounts = google.add_service_account([ANNA, BEN])
    google.faults.append(Fault(on="token", status=400, reason="invalid_grant", mailbox=BEN))
    finish(request_for(gmail(delegated(accounts, ANNA)), EMAIL))
    with pytest.raises(RefreshError, match="invalid_grant"):
        finish(request_for(gmail(delegated(accounts, BEN)), EMAIL, BEN))


@pytest.mark.parametrize(
    "wrong",
    [
        {"on": "upload"},
        {"on": "start", "kind": "explode"},
        {"on": "start", "when": "later"},
        {"on": "start", "when": "mid"},
        {"on": "chunk", "when": "mid", "kind": "slow"},
    ],
)
def test_a_misspelt_fault_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not"):
        Fault(**wrong)  # type: ignore[arg-type]


def test_many_uploads_at_once(google: Google) -> None:
    mailboxes = [f"user{n}@example.com" for n in range(8)]
    infos = {mailbox: google.add_mailbox(mailbox) for mailbox in mailboxes}
    google.faults.append(Fault(on="start", times=5))
    failed = threading.Semaphore(0)

    def deliver(n: int) -> None:
        mailbox = mailboxes[n % 8]
        request = request_for(gmail(user(infos[mailbox])), b"N: %d\r\n\r\n" % n, mailbox)
        while True:
            try:
                finish(request)
                return
            except HttpError:
                failed.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(deliver, range(80)))
    assert google.faults[0].fired == failed._value == 5
    for index, mailbox in enumerate(mailboxes):
        raws = sorted(m.raw for m in google.messages(mailbox))
        assert raws == sorted(b"N: %d\r\n\r\n" % n for n in range(index, 80, 8))


# -- the consent ------------------------------------------------------------------------------


@pytest.fixture
def flow(google: Google, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """The real library for a client on a desktop, with Anna at the browser."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(google.ca_file))
    google.person = ANNA
    return Flow.from_client_config(
        google.add_client(), [SCOPE_INSERT], redirect_uri="http://localhost:8085/"
    )


def click(flow: Flow, **asked: str) -> tuple[int, dict[str, str]]:
    """Status of the page, and what the browser is sent back with."""
    url, _ = flow.authorization_url(**{"access_type": "offline", **asked})
    answer = requests.get(url, allow_redirects=False, timeout=10)
    back = urlsplit(answer.headers.get("Location", ""))
    return answer.status_code, dict(parse_qsl(back.query))


def test_a_consent_gives_a_token_for_the_mailbox_of_who_is_there(
    google: Google, flow: Flow
) -> None:
    status, back = click(flow, state="s")
    assert (status, back["state"]) == (302, "s")
    flow.fetch_token(code=back["code"])
    finish(request_for(gmail(flow.credentials), EMAIL))
    assert [message.raw for message in google.messages(ANNA)] == [EMAIL]
    assert flow.credentials.refresh_token
    with pytest.raises(InvalidGrantError):
        flow.fetch_token(code=back["code"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"code_verifier": "x" * 43}, InvalidGrantError),
        ({"redirect_uri": "http://localhost:1/"}, InvalidGrantError),
        ({"client_secret": "GOCSPX-wrong"}, InvalidClientError),
    ],
    ids=["another verifier", "another way back", "another secret"],
)
def test_who_did_not_ask_gets_no_token(
    flow: Flow, change: dict[str, str], error: type[Exception]
) -> None:
    _, back = click(flow)
    if "redirect_uri" in change:
        flow.redirect_uri = change["redirect_uri"]
        change = {}
    with pytest.raises(error):
        flow.fetch_token(code=back["code"], **change)


@pytest.mark.parametrize(
    ("hint", "mailbox"), [("Ben@gmail.example", "ben@gmail.example"), ("no@such.example", ANNA)]
)
def test_the_client_may_hint_at_another_mailbox(
    google: Google, flow: Flow, hint: str, mailbox: str
) -> None:
    google.add_mailbox("ben@gmail.example")
    _, back = click(flow, login_hint=hint)
    flow.fetch_token(code=back["code"])
    assert google.mailbox_of_grant({"refresh_token": flow.credentials.refresh_token}) == mailbox


def test_a_browser_finds_the_page_without_a_proxy(google: Google) -> None:
    client = google.add_client()["installed"]
    asked = {"client_id": client["client_id"], "redirect_uri": "http://localhost:1/", "state": "s"}
    answer = requests.get(f"{google.url}/o/oauth2/auth", asked, allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["Location"][:19]) == (302, "http://localhost:1/")


def test_who_has_a_token_can_revoke_it(google: Google, flow: Flow) -> None:
    """OAuth 2.0 for Desktop Apps, "Revoking a token": 200, or 400 with an error code."""
    _, back = click(flow)
    flow.fetch_token(code=back["code"])
    other = google.add_mailbox(ANNA)
    told = {"token": flow.credentials.refresh_token}
    revoke = "https://oauth2.googleapis.com/revoke"
    assert requests.post(revoke, told, timeout=10).status_code == 200
    again = requests.post(revoke, told, timeout=10)
    assert (again.status_code, again.json()) == (400, {"error": "invalid_token"})
    assert requests.post(revoke, timeout=10).status_code == 400
    with pytest.raises(RefreshError, match="expired or revoked"):
        flow.credentials.refresh(Request())
    mine = {**other, "grant_type": "refresh_token"}
    answer = requests.post(google.url + "/token", mine, timeout=10)
    assert answer.status_code == 200, "another token of the same mailbox is none of its business"


def test_no_consent(google: Google, flow: Flow) -> None:
    assert click(flow, access_type="online")[1]["error"] == "access_denied"
    google.person = ""
    assert click(flow)[1]["error"] == "access_denied"
    flow.redirect_uri = "http://evil.example/"
    assert click(flow) == (400, {})
    stranger = {"installed": {**google.add_client()["installed"], "client_id": "x"}}
    unknown = Flow.from_client_config(stranger, [SCOPE_INSERT], redirect_uri="http://localhost/")
    assert click(unknown) == (400, {})
