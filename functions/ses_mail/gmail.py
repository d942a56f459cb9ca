"""Importing an email into a mailbox through Gmail's resumable upload protocol.

The client library builds and authorises the requests; the loop over the chunks is ours, because the
library cannot ask a session of another process for its state and takes an empty 200 for nothing.
Source: Google, "Upload attachments", "Resumable upload".
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import google_auth_httplib2
from googleapiclient.discovery import build
from googleapiclient.http import MediaUpload, build_http

from ses_mail.credentials import MailboxCredentials
from ses_mail.errors import GmailRejectedError, GmailTemporaryError, GmailTokenError
from ses_mail.google_errors import translated

# A multiple of 256 KiB, as the protocol wants; 4 MiB keep a 40 MB email in flat memory.
CHUNK = 4 * 1024 * 1024
_TIMEOUT = 60

_RATE_LIMITS = ("rateLimitExceeded", "userRateLimitExceeded", "dailyLimitExceeded", "quotaExceeded")
_TEMPORARY_STATUS = (408, 429, 500, 502, 503, 504)

ReadRange = Callable[[int, int], bytes]
OutOfTime = Callable[[], bool]


class SessionGoneError(Exception):
    """Google no longer knows the upload session (404, 410): the upload must start anew."""


class GmailImport:
    """One upload to one mailbox; size is the length of the whole email in bytes."""

    def __init__(
        self, credentials: MailboxCredentials, own_parameter: str, labels: Sequence[str], size: int
    ) -> None:
        self._credentials = credentials
        self._own_parameter = own_parameter
        self._size = size
        transport = build_http()
        transport.timeout = _TIMEOUT
        # Made anew for every invocation: a connection kept over a Lambda's frozen time is dead.
        self._http = google_auth_httplib2.AuthorizedHttp(credentials.google, http=transport)
        service = build(
            "gmail", "v1", http=self._http, static_discovery=True, cache_discovery=False
        )
        self._request = (
            service.users()
            .messages()
            .import_(
                userId=credentials.mailbox,
                body={"labelIds": list(labels)},
                internalDateSource="receivedTime",
                processForCalendar=True,
                neverMarkSpam=False,
                media_body=_Announced(size),
            )
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def start(self) -> str:
        """A new session's URI, which is a credential."""
        request = self._request
        headers = {
            **request.headers,
            "X-Upload-Content-Type": request.resumable.mimetype(),
            "X-Upload-Content-Length": str(self._size),
            "content-length": str(len(request.body)),
        }
        with self._translated():
            response, content = self._http.request(
                request.uri, method="POST", body=request.body, headers=headers
            )
        if response.status == 200 and "location" in response:
            return str(response["location"])
        raise self._error(response.status, content)

    def progress(self, session: str) -> tuple[int, str | None]:
        """(bytes that Google has, message id once the email is in the mailbox).

        The id may be empty: a finished session need not repeat its answer. Raises
        SessionGoneError.
        """
        return self._put(session, b"", f"bytes */{self._size}")

    def upload(self, session: str, begin: int, read: ReadRange, out_of_time: OutOfTime) -> str:
        """Send the bytes from `begin` on and return Gmail's id of the message.

        read(begin, length) gives bytes of the email. Between chunks, and without new progress,
        gives up with GmailTemporaryError: the next attempt goes on from there.
        """
        while True:
            if out_of_time():
                raise GmailTemporaryError(f"out of time after {begin} bytes", "out_of_time")
            chunk = read(begin, CHUNK)
            received, message_id = self._put(
                session, chunk, _content_range(begin, chunk, self._size)
            )
            if message_id is not None:
                return message_id
            if received <= begin:
                raise GmailTemporaryError(f"Gmail took none of {len(chunk)} bytes", "no_progress")
            begin = received

    def _put(self, session: str, chunk: bytes, content_range: str) -> tuple[int, str | None]:
        headers = {"Content-Range": content_range, "Content-Length": str(len(chunk))}
        with self._translated():
            response, content = self._http.request(
                session, method="PUT", body=chunk, headers=headers
            )
        if response.status in (200, 201):
            return self._size, _message_id(content)
        if response.status == 308:
            # No Range header: Google has nothing yet.
            received = response.get("range", "").rpartition("-")[2]
            return int(received) + 1 if received.isdigit() else 0, None
        if response.status in (404, 410):
            raise SessionGoneError
        raise self._error(response.status, content)

    def _translated(self) -> AbstractContextManager[None]:
        used = self._credentials
        return translated(f"parameter {used.parameter} for {used.mailbox}")

    def _error(self, status: int, content: bytes) -> Exception:
        reason, message = _reason(content)
        text = f"Gmail answered {status} {reason} for {self._credentials.mailbox}: {message}"
        code = reason or str(status)
        if status in _TEMPORARY_STATUS or (status == 403 and reason in _RATE_LIMITS):
            return GmailTemporaryError(text, code)
        if status in (401, 403):
            return GmailTokenError(
                f"{text} (used parameter {self._credentials.parameter}); put credentials that may "
                f"act for {self._credentials.mailbox} into parameter {self._own_parameter}",
                code,
            )
        return GmailRejectedError(text, code)


class _Announced(MediaUpload):  # type: ignore[misc]  # the library ships no types
    """Tells the library the size and kind of a body that it never gets to send."""

    def __init__(self, size: int) -> None:
        self._size = size

    def chunksize(self) -> int:
        return CHUNK

    def mimetype(self) -> str:
        return "message/rfc822"

    def size(self) -> int:
        return self._size

    def resumable(self) -> bool:
        return True


def _content_range(begin: int, chunk: bytes, size: int) -> str:
    # An empty rest can only be asked for its state; that also finishes an upload of 0 bytes.
    if not chunk:
        return f"bytes */{size}"
    return f"bytes {begin}-{begin + len(chunk) - 1}/{size}"


def _message_id(content: bytes) -> str:
    try:
        return str(json.loads(content)["id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _reason(content: bytes) -> tuple[str, str]:
    """(reason, message) of Google's error body; empty if it is no such JSON."""
    try:
        error = json.loads(content)["error"]
        details: dict[str, Any] = error["errors"][0]
        return str(details.get("reason", "")), str(error.get("message", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""
