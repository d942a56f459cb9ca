"""Importing an email into a mailbox through Gmail's resumable upload protocol.

The client library builds and authorises the requests; the loop over the chunks is ours, because the
library cannot ask a session of another process for its state and takes an empty 200 for nothing.
Source: Google, "Upload attachments", "Resumable upload".
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import google_auth_httplib2
from googleapiclient.discovery import build
from googleapiclient.http import MediaUpload, build_http

from ses_mail.clients import LONGEST_CALL
from ses_mail.credentials import MailboxCredentials
from ses_mail.errors import GmailRejectedError, GmailTemporaryError, GmailTokenError
from ses_mail.google_errors import translated

# A multiple of 256 KiB, as the protocol wants; 4 MiB keep a 40 MB email in flat memory.
CHUNK = 4 * 1024 * 1024

# Seconds that one wait for Google may last: with time enough, and at least, for a request to be
# worth its while.
_LONGEST_WAIT, _SHORTEST_WAIT = 60.0, 5.0
# How often a request may wait so long: once by itself, and before it three times for a new access
# token, which google-auth asks for as often.
_WAITS = 4
# What follows the last request: the record in the deliveries table.
TIME_TO_END = LONGEST_CALL + 4.0
# What a chunk needs: its bytes from S3, the request, and what follows.
_TIME_FOR_CHUNK = LONGEST_CALL + _WAITS * _SHORTEST_WAIT + TIME_TO_END

_RATE_LIMITS = ("rateLimitExceeded", "userRateLimitExceeded", "dailyLimitExceeded", "quotaExceeded")
# Beside every 5xx; 425 is Too Early (RFC 8470).
_LATER = (408, 425, 429)

ReadRange = Callable[[int, int], bytes]


class SessionGoneError(Exception):
    """Google refuses the upload session, or no longer knows it: the upload must start again."""


class GmailImport:
    """One upload to one mailbox; size is the length of the whole email in bytes.

    No request is begun that could outlast the invocation: GmailTemporaryError `out_of_time`.
    """

    def __init__(
        self,
        credentials: MailboxCredentials,
        own_parameter: str,
        labels: Sequence[str],
        size: int,
        seconds_left: Callable[[], float],
    ) -> None:
        self._seconds_left = seconds_left
        self._credentials = credentials
        self._own_parameter = own_parameter
        self._size = size
        # One for every invocation: a connection kept over a Lambda's frozen time is dead.
        self._transport = build_http()
        self._http = google_auth_httplib2.AuthorizedHttp(credentials.google, http=self._transport)
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
        response, content = self._ask(request.uri, "POST", request.body, headers)
        if response.status == 200 and "location" in response:
            return str(response["location"])
        raise self._error(response.status, content)

    def progress(self, session: str) -> tuple[int, str | None]:
        """(bytes that Google has, message id once the email is in the mailbox).

        The id may be empty: a finished session need not repeat its answer. Raises
        SessionGoneError for every refusal that is not temporary, one of the token too: only a new
        session shows whether the token or the session is refused.
        """
        response, content = self._put(session, b"", f"bytes */{self._size}")
        taken = self._taken(response, content)
        if taken:
            return taken
        error = self._error(response.status, content)
        raise error if isinstance(error, GmailTemporaryError) else SessionGoneError

    def upload(self, session: str, begin: int, read: ReadRange) -> str:
        """Send the bytes from `begin` on and return Gmail's id of the message.

        read(begin, length) gives bytes of the email. Between chunks, and without new progress,
        gives up with GmailTemporaryError: the next attempt goes on from there.
        """
        while True:
            if self._seconds_left() < _TIME_FOR_CHUNK:
                raise GmailTemporaryError(f"out of time after {begin} bytes", "out_of_time")
            chunk = read(begin, CHUNK)
            response, content = self._put(session, chunk, _content_range(begin, chunk, self._size))
            taken = self._taken(response, content)
            if taken is None:
                gone = response.status in (404, 410)
                raise SessionGoneError if gone else self._error(response.status, content)
            received, message_id = taken
            if message_id is not None:
                return message_id
            if received <= begin:
                raise GmailTemporaryError(f"Gmail took none of {len(chunk)} bytes", "no_progress")
            begin = received

    def _put(self, session: str, chunk: bytes, content_range: str) -> tuple[Any, bytes]:
        headers = {"Content-Range": content_range, "Content-Length": str(len(chunk))}
        return self._ask(session, "PUT", chunk, headers)

    def _taken(self, response: Any, content: bytes) -> tuple[int, str | None] | None:
        """(bytes that Google has, message id once it has all); None if it refuses."""
        if response.status in (200, 201):
            return self._size, _message_id(content)
        if response.status == 308:
            # No Range header: Google has nothing yet.
            received = response.get("range", "").rpartition("-")[2]
            return int(received) + 1 if received.isdigit() else 0, None
        return None

    def _ask(
        self, uri: str, method: str, body: bytes | str, headers: Mapping[str, str]
    ) -> tuple[Any, bytes]:
        """One request, whose every wait is short enough for the time that is left."""
        wait = min(_LONGEST_WAIT, (self._seconds_left() - TIME_TO_END) / _WAITS)
        if wait < _SHORTEST_WAIT:
            raise GmailTemporaryError("too little time for a request of Google", "out_of_time")
        self._transport.timeout = wait
        for connection in self._transport.connections.values():
            connection.timeout = wait
            if connection.sock:
                connection.sock.settimeout(wait)
        used = self._credentials
        with translated(f"parameter {used.parameter} for {used.mailbox}"):
            response, content = self._http.request(uri, method=method, body=body, headers=headers)
        return response, content

    def _error(self, status: int, content: bytes) -> Exception:
        reason, message = _reason(content)
        text = f"Gmail answered {status} {reason} for {self._credentials.mailbox}: {message}"
        code = reason or str(status)
        kind = meaning(status, reason)
        if kind is GmailTokenError:
            return GmailTokenError(
                f"{text} (used parameter {self._credentials.parameter}); put credentials that may "
                f"act for {self._credentials.mailbox} into parameter {self._own_parameter}",
                code,
            )
        return kind(text, code)


def meaning(
    status: int, reason: str
) -> type[GmailTokenError] | type[GmailRejectedError] | type[GmailTemporaryError]:
    """What an answer of Gmail's means that is not what was asked for."""
    if status >= 500 or status in _LATER or (status == 403 and reason in _RATE_LIMITS):
        return GmailTemporaryError
    if status in (401, 403):
        return GmailTokenError
    # Below 400 it is an answer without what it must have, such as a session without its address.
    return GmailRejectedError if status >= 400 else GmailTemporaryError


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
    """(reason, message) of Google's error body; empty if it is not such JSON."""
    try:
        error = json.loads(content)["error"]
        details: dict[str, Any] = error["errors"][0]
        return str(details.get("reason", "")), str(error.get("message", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""
