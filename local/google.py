"""A small Google: the OAuth token endpoint and the part of Gmail that ses-mail needs.

One port speaks plain HTTP and is also an HTTPS proxy (CONNECT) that ends TLS itself for Google's
host names, so unmodified product code reaches it with `HTTPS_PROXY` and `HTTPLIB2_CA_CERTS` alone,
provided that PySocks is installed: httplib2 silently ignores the proxy without it, and would go to
the real Google.
"""

import base64
import contextlib
import email.message
import email.utils
import hashlib
import json
import re
import secrets
import shutil
import socket
import socketserver
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import trustme
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

GMAIL = "gmail.googleapis.com"
OAUTH = "oauth2.googleapis.com"
ACCOUNTS = "accounts.google.com"
HOSTS = (GMAIL, OAUTH, ACCOUNTS, "www.googleapis.com")
TOKEN_URI = f"https://{OAUTH}/token"
AUTH_PATH = "/o/oauth2/auth"
AUTH_URI = f"https://{ACCOUNTS}{AUTH_PATH}"

SCOPE_INSERT = "https://www.googleapis.com/auth/gmail.insert"
SCOPE_READONLY = "https://www.googleapis.com/auth/gmail.readonly"
SCOPES_ALL = ("https://mail.google.com/", "https://www.googleapis.com/auth/gmail.modify")

CHUNK_GRAIN = 256 * 1024
LARGEST_MESSAGE = 157_286_400
IN_MEMORY = 1024 * 1024
TOKEN_SECONDS = 3599

SYSTEM_LABELS = {"INBOX", "UNREAD", "SPAM", "TRASH", "STARRED", "IMPORTANT", "SENT", "DRAFT"}
STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
REQUEST_KINDS = ("token", "start", "chunk", "last_chunk", "status", "list", "get")


@dataclass
class Fault:
    """One rule of misbehaviour, used up after `times` requests.

    `on` is a request kind; "chunk" takes the last chunk too. `when`: "before" the server does its
    work, "after" it (the answer is lost), or "mid": half of a chunk, cut to 256 KiB, is kept.
    `kind`: answer `status` (with `reason`, or HTML, or `body`; 404 and 410 also end the session),
    "reset" the connection, "hang" for `seconds`
    (0 = until the server stops) and drop it, or answer "slow", `seconds` late.
    `times=None` = always.
    """

    on: str
    status: int = 503
    reason: str = "backendError"
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    html: bool = False
    body: bytes | None = None
    times: int | None = 1
    mailbox: str | None = None
    when: str = "before"
    kind: str = "status"
    seconds: float = 0.0
    fired: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("on", REQUEST_KINDS),
            ("when", ("before", "mid", "after")),
            ("kind", ("status", "reset", "hang", "slow")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}, not one of {allowed}")
        if self.when == "mid" and (self.kind == "slow" or "chunk" not in self.on):
            raise ValueError("when='mid' loses half of a chunk: not for 'slow' or other requests")

    def applies_to(self, kind: str, mailbox: str | None) -> bool:
        """Tell whether this rule is the one for a request of that kind to that mailbox."""
        return (
            (self.on == kind or (self.on == "chunk" and kind == "last_chunk"))
            and self.mailbox in (None, mailbox)
            and (self.times is None or self.fired < self.times)
        )


@dataclass(frozen=True)
class Message:
    """An email in a mailbox; `query` holds the import's own parameters (`internalDateSource`, …).

    `sequence` counts the imports of the whole server, `internal_date` is in milliseconds.
    """

    id: str
    labels: tuple[str, ...]
    query: dict[str, str]
    size: int
    sequence: int
    internal_date: int
    _file: IO[bytes]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def raw(self) -> bytes:
        """The email's bytes as they were uploaded."""
        with self._lock:
            self._file.seek(0)
            return self._file.read()


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class _Token:
    mailbox: str | None  # None: the reader, who may read every mailbox
    scopes: frozenset[str]
    expires: float


@dataclass(frozen=True)
class _RefreshToken:
    mailbox: str
    client_id: str
    client_secret: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class _Consent:
    """What a person agreed to in the browser, until the client fetches its token for the code."""

    client_id: str
    redirect_uri: str
    challenge: str
    grant: _RefreshToken


@dataclass(frozen=True)
class _ServiceAccount:
    public_key: rsa.RSAPublicKey
    subjects: frozenset[str]


@dataclass
class _Session:
    mailbox: str
    labels: tuple[str, ...]
    query: dict[str, str]
    total: int | None
    file: IO[bytes]
    received: int = 0
    message: Message | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class _RefusedError(Exception):
    """Ends a request with an error answer."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class _DroppedError(Exception):
    """Ends a request without any answer."""


def _new_client() -> tuple[str, str]:
    client_id = f"{secrets.randbelow(10**12):012}-local.apps.googleusercontent.com"
    return client_id, "GOCSPX-" + secrets.token_urlsafe(21)


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> _Answer:
    return _Answer(
        status,
        {"Content-Type": "application/json; charset=UTF-8", **(headers or {})},
        json.dumps(body, indent=2).encode(),
    )


def _gmail_error(
    status: int, reason: str, message: str, headers: dict[str, str] | None = None, **more: object
) -> _Answer:
    domain = "usageLimits" if reason.endswith(("LimitExceeded", "quotaExceeded")) else "global"
    error: dict[str, object] = {
        "code": status,
        "message": message,
        "errors": [{"message": message, "domain": domain, "reason": reason}],
        "status": STATUS_NAMES.get(status, "UNKNOWN"),
    }
    return _json({"error": error | more}, status, headers)


def _token_error(status: int, error: str, description: str) -> _Answer:
    return _json({"error": error, "error_description": description}, status)


def _fault_answer(fault: Fault, kind: str) -> _Answer:
    message = fault.message or fault.reason
    if fault.body is not None:
        return _Answer(fault.status, fault.headers, fault.body)
    if fault.html:
        page = f"<!DOCTYPE html><html><title>Error {fault.status}</title><p>{message}</html>"
        headers = {"Content-Type": "text/html; charset=UTF-8", **fault.headers}
        return _Answer(fault.status, headers, page.encode())
    if kind == "token":
        body = {"error": fault.reason, "error_description": message}
        return _json(body, fault.status, fault.headers)
    return _gmail_error(fault.status, fault.reason, message, fault.headers)


def _b64decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _labels(metadata: bytes) -> tuple[str, ...]:
    """Read `labelIds` out of an import's JSON; an unknown label is a 400 as at Gmail."""
    try:
        labels = json.loads(metadata or b"{}").get("labelIds", [])
    except (ValueError, AttributeError):
        raise _RefusedError(_gmail_error(400, "parseError", "Parse Error")) from None
    for label in labels:
        if label not in SYSTEM_LABELS:
            raise _RefusedError(_gmail_error(400, "invalidArgument", f"Invalid label: {label}"))
    return tuple(labels)


def _require_rfc822(content_type: str) -> None:
    if not content_type.startswith("message/"):
        text = f"Media type '{content_type}' is not supported. Valid media types: [message/*]"
        raise _RefusedError(_gmail_error(400, "badContent", text))


class Google:
    """The server and what it holds: mailboxes, tokens, upload sessions, faults.

    `time_factor` shortens the life of access tokens (3599 s), `directory` takes emails over 1 MB
    and the certificate. `faults` is read at every request; the first rule that applies is used.
    `requests` counts by kind. With `forget_finished` a finished session answers 404. `person` is
    who sits at the browser and agrees to everything, for another mailbox if the client hints at it;
    if empty, nothing is agreed to.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        time_factor: float = 1.0,
        directory: str | Path | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.time_factor = time_factor
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.forget_finished = False
        self.reader_token = "ya29.reader-" + secrets.token_urlsafe(24)
        self._directory = Path(directory) if directory else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._mailboxes: dict[str, list[Message]] = {}
        self._imported = 0
        self._refresh_tokens: dict[str, _RefreshToken] = {}
        self._revoked: set[str] = set()
        self._clients: dict[str, str] = {}
        self._consents: dict[str, _Consent] = {}
        self.person = ""
        self._service_accounts: dict[str, _ServiceAccount] = {}
        self._tokens = {
            self.reader_token: _Token(None, frozenset({SCOPE_READONLY}), float("inf")),
        }
        self._sessions: dict[str, _Session] = {}
        self._opened: list[str] = []  # the secret of every session there ever was
        self._server: _Server | None = None

    # -- life --------------------------------------------------------------------------------

    def start(self) -> "Google":
        """Listen; a port that is taken raises OSError."""
        self._server = _Server((self.host, self.port), _Handler)
        self._server.google = self
        self.port = self._server.server_address[1]
        if self._directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="google-")
            self._directory = Path(self._temporary.name)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._server.tls = _certify(self._directory)
        self._stopped.clear()
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="google", daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; the mailboxes stay readable."""
        self._stopped.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._server = None
        if self._temporary:
            self._temporary.cleanup()
            self._temporary = self._directory = None

    def __enter__(self) -> "Google":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where plain HTTP is served, and the value for HTTPS_PROXY."""
        return f"http://{self.host}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The PEM file for HTTPLIB2_CA_CERTS; there while the server runs."""
        if self._directory is None:
            raise RuntimeError("not started")
        return self._directory / "google-ca.pem"

    # -- for tests and the demo --------------------------------------------------------------

    def add_mailbox(self, address: str, scopes: Iterable[str] = (SCOPE_INSERT,)) -> dict[str, str]:
        """Create the mailbox if need be, and give out a new authorized user for it."""
        mailbox = address.lower()
        client_id, client_secret = _new_client()
        refresh_token = self._new_refresh_token(
            _RefreshToken(mailbox, client_id, client_secret, frozenset(scopes))
        )
        return {
            "type": "authorized_user",
            "client_id": client_id,
            "client_secret": client_secret,
            "refresh_token": refresh_token,
        }

    def add_client(self) -> dict[str, dict[str, Any]]:
        """Register an OAuth client of type "Desktop app"; returns its downloaded JSON."""
        client_id, client_secret = _new_client()
        with self._lock:
            self._clients[client_id] = client_secret
        return {
            "installed": {
                "client_id": client_id,
                "client_secret": client_secret,
                "auth_uri": AUTH_URI,
                "token_uri": TOKEN_URI,
                "redirect_uris": ["http://localhost"],
            }
        }

    def _new_refresh_token(self, grant: _RefreshToken) -> str:
        refresh_token = "1//0" + secrets.token_urlsafe(48)
        with self._lock:
            self._mailboxes.setdefault(grant.mailbox, [])
            self._refresh_tokens[refresh_token] = grant
        return refresh_token

    def add_service_account(self, subjects: Iterable[str]) -> dict[str, str]:
        """Create an account with domain-wide delegation for these mailboxes, which it creates."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = f"ses-mail-{secrets.token_hex(3)}@local.iam.gserviceaccount.com"
        account = _ServiceAccount(key.public_key(), frozenset(s.lower() for s in subjects))
        with self._lock:
            self._service_accounts[name] = account
            for mailbox in account.subjects:
                self._mailboxes.setdefault(mailbox, [])
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": "local",
            "private_key_id": secrets.token_hex(20),
            "private_key": pem.decode(),
            "client_email": name,
            "client_id": str(secrets.randbelow(10**21)),
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": TOKEN_URI,
        }

    def revoke(self, address: str) -> None:
        """Make every token of the mailbox invalid; `add_mailbox` gives out a good one again."""
        mailbox = address.lower()
        with self._lock:
            self._revoked |= {
                t for t, grant in self._refresh_tokens.items() if grant.mailbox == mailbox
            }
            self._tokens = {t: g for t, g in self._tokens.items() if g.mailbox != mailbox}

    def refuse_from_now(self, token: str) -> _Answer:
        """Answer the endpoint of revocation: one refresh token, and what was given out for it."""
        with self._lock:
            grant = self._refresh_tokens.get(token)
            if grant is None or token in self._revoked:
                return _json({"error": "invalid_token"}, 400)
            self._revoked.add(token)
            self._tokens = {t: g for t, g in self._tokens.items() if g.mailbox != grant.mailbox}
        return _json({})

    def messages(self, mailbox: str) -> list[Message]:
        """List what was imported, oldest first."""
        with self._lock:
            return list(self._mailboxes.get(mailbox.lower(), []))

    def secrets(self) -> dict[str, str]:
        """Every credential that was ever given out: tokens, clients' secrets, upload sessions; by
        what it is."""
        with self._lock:
            return {
                **{f"upload session {n}": secret for n, secret in enumerate(self._opened)},
                **{f"access token {n}": token for n, token in enumerate(self._tokens)},
                **{
                    f"{what} {n} of {grant.mailbox}": secret
                    for n, (token, grant) in enumerate(self._refresh_tokens.items())
                    for what, secret in (
                        ("refresh token", token),
                        ("client secret", grant.client_secret),
                    )
                },
            }

    # -- used by the handler -----------------------------------------------------------------

    def spool(self) -> IO[bytes]:
        """Open an anonymous file that leaves memory at 1 MB."""
        return tempfile.SpooledTemporaryFile(
            IN_MEMORY, dir=str(self._directory) if self._directory else None
        )

    def wait(self, seconds: float) -> None:
        """Sleep that long (0 = for ever), or until the server stops."""
        self._stopped.wait(seconds or None)

    def take_fault(self, kind: str, mailbox: str | None) -> Fault | None:
        """Count the request, and use up the first fault that applies to it."""
        with self._lock:
            self.requests[kind] += 1
            for fault in list(self.faults):
                if fault.applies_to(kind, mailbox):
                    fault.fired += 1
                    return fault
            return None

    def mailbox_of_grant(self, form: dict[str, str]) -> str | None:
        """Tell whose token a token request is about, however wrong the rest of it is."""
        grant = self._refresh_tokens.get(form.get("refresh_token", ""))
        if grant:
            return grant.mailbox
        try:
            claims = json.loads(_b64decode(form["assertion"].split(".")[1]))
            return str(claims["sub"]).lower()
        except (KeyError, IndexError, ValueError):
            return None

    def grant(self, form: dict[str, str]) -> _Answer:
        """Answer the OAuth token endpoint."""
        more: dict[str, str] = {}
        match form.get("grant_type"):
            case "authorization_code":
                grant = self._check_code(form)
                mailbox, scopes = grant.mailbox, grant.scopes
                more = {"refresh_token": self._new_refresh_token(grant)}
            case "refresh_token":
                mailbox, scopes = self._check_refresh(form)
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                mailbox, scopes = self._check_assertion(form.get("assertion", ""))
            case other:
                text = f"Invalid grant_type: {other}"
                raise _RefusedError(_token_error(400, "unsupported_grant_type", text))
        token = "ya29." + secrets.token_urlsafe(48)
        expires = time.monotonic() + TOKEN_SECONDS * self.time_factor
        with self._lock:
            self._tokens[token] = _Token(mailbox, scopes, expires)
        return _json(
            {
                "access_token": token,
                "expires_in": TOKEN_SECONDS,
                "scope": " ".join(sorted(scopes)),
                "token_type": "Bearer",
                **more,
            }
        )

    def consent(self, query: dict[str, list[str]]) -> _Answer:
        """Send the browser back to the client with a code, as after a click on "Allow"."""
        asked = {name: values[0] for name, values in query.items()}
        client_id, redirect_uri = asked.get("client_id", ""), asked.get("redirect_uri", "")
        with self._lock:
            client_secret = self._clients.get(client_id)
        # Clients on desktops get their answer on a loopback port, each time another one.
        if client_secret is None or urlsplit(redirect_uri).hostname != "localhost":
            raise _RefusedError(_Answer(400, body=b"Error 400: invalid_request"))
        answer = {"state": asked.get("state", "")}
        if not self.person or asked.get("access_type") != "offline":
            answer["error"] = "access_denied"
        else:
            hint = asked.get("login_hint", "").lower()
            mailbox = hint if hint in self._mailboxes else self.person
            answer["code"] = "4/0" + secrets.token_urlsafe(32)
            scopes = frozenset(asked.get("scope", "").split())
            grant = _RefreshToken(mailbox, client_id, client_secret, scopes)
            challenge = asked.get("code_challenge", "")
            with self._lock:
                self._consents[answer["code"]] = _Consent(client_id, redirect_uri, challenge, grant)
        return _Answer(302, {"Location": f"{redirect_uri}?{urlencode(answer)}"})

    def _check_code(self, form: dict[str, str]) -> _RefreshToken:
        with self._lock:
            consent = self._consents.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            consent is None
            or consent.redirect_uri != form.get("redirect_uri")
            or consent.challenge != challenge
        ):
            raise _RefusedError(_token_error(400, "invalid_grant", "Malformed auth code."))
        if (form.get("client_id"), form.get("client_secret")) != (
            consent.client_id,
            consent.grant.client_secret,
        ):
            text = "The provided client secret is invalid."
            raise _RefusedError(_token_error(401, "invalid_client", text))
        return consent.grant

    def _check_refresh(self, form: dict[str, str]) -> tuple[str, frozenset[str]]:
        token = form.get("refresh_token", "")
        with self._lock:
            grant = self._refresh_tokens.get(token)
            revoked = token in self._revoked
        if grant is None:
            raise _RefusedError(_token_error(400, "invalid_grant", "Bad Request"))
        if form.get("client_id") != grant.client_id:
            text = "The OAuth client was not found."
            raise _RefusedError(_token_error(401, "invalid_client", text))
        if form.get("client_secret") != grant.client_secret:
            text = "The provided client secret is invalid."
            raise _RefusedError(_token_error(401, "invalid_client", text))
        if revoked:
            text = "Token has been expired or revoked."
            raise _RefusedError(_token_error(400, "invalid_grant", text))
        asked = frozenset(form.get("scope", "").split())
        if not asked <= grant.scopes:
            raise _RefusedError(_token_error(400, "invalid_scope", "Bad Request"))
        return grant.mailbox, asked or grant.scopes

    def _check_assertion(self, assertion: str) -> tuple[str, frozenset[str]]:
        def invalid(text: str) -> _RefusedError:
            return _RefusedError(_token_error(400, "invalid_grant", text))

        try:
            signed, _, signature = assertion.rpartition(".")
            claims = json.loads(_b64decode(signed.split(".")[1]))
            account = self._service_accounts.get(claims["iss"])
            scopes = frozenset(claims["scope"].split())
            subject, audience = claims.get("sub", claims["iss"]).lower(), claims["aud"]
            issued, expires = float(claims["iat"]), float(claims["exp"])
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            raise invalid("Bad Request") from None
        if account is None:
            raise invalid("Invalid grant: account not found")
        try:
            account.public_key.verify(
                _b64decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except (InvalidSignature, ValueError):
            raise invalid("Invalid JWT Signature.") from None
        if audience != TOKEN_URI:
            raise invalid(f"Invalid JWT: Failed audience check. The right audience is {TOKEN_URI}")
        if not issued - 300 <= time.time() < expires <= issued + 3600:
            raise invalid(
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable "
                "timeframe. Check your iat and exp values in the JWT claim."
            )
        # Without a subject the account speaks for itself, which needs no delegation.
        if "sub" in claims and subject not in account.subjects:
            text = (
                "Client is unauthorized to retrieve access tokens using this method, or client "
                "not authorized for any of the scopes requested."
            )
            raise _RefusedError(_token_error(401, "unauthorized_client", text))
        return subject, scopes

    def resolve(self, user: str, authorization: str) -> str | None:
        """Turn a path's userId into a mailbox, without checking any right."""
        if user != "me":
            return user.lower()
        token = self._tokens.get(authorization.removeprefix("Bearer "))
        return token.mailbox if token else None

    def authorize(self, user: str, authorization: str, scope: str) -> str:
        """Return the mailbox that the token may act for under this userId, or refuse."""
        if not authorization:
            raise _RefusedError(_unauthenticated("required", "Login Required."))
        with self._lock:
            token = self._tokens.get(authorization.removeprefix("Bearer "))
        if token is None or time.monotonic() >= token.expires:
            raise _RefusedError(_unauthenticated("authError", "Invalid Credentials"))
        if not token.scopes & {scope, *SCOPES_ALL}:
            raise _RefusedError(_insufficient_scopes())
        mailbox = token.mailbox if user == "me" else user.lower()
        if token.mailbox not in (None, mailbox):
            # Gmail names the token's account here, not the one that was asked for.
            text = f"Delegation denied for {token.mailbox}"
            raise _RefusedError(_gmail_error(403, "forbidden", text))
        if mailbox is None or mailbox not in self._mailboxes:
            raise _RefusedError(_gmail_error(404, "notFound", "Requested entity was not found."))
        return mailbox

    def open_session(
        self, mailbox: str, labels: tuple[str, ...], query: dict[str, str], total: int | None
    ) -> str:
        """Start a resumable upload; returns its secret."""
        if total is not None and total > LARGEST_MESSAGE:
            raise _RefusedError(_gmail_error(413, "uploadTooLarge", "Request is too large."))
        secret = secrets.token_urlsafe(64)
        session = _Session(mailbox, labels, query, total, self.spool())
        with self._lock:
            self._sessions[secret] = session
            self._opened.append(secret)
        return secret

    def session(self, secret: str) -> _Session:
        """Find a session that has not been forgotten."""
        with self._lock:
            session = self._sessions.get(secret)
        if session is None or (session.message and self.forget_finished):
            raise _RefusedError(_gmail_error(404, "notFound", "Requested entity was not found."))
        return session

    def end_session(self, secret: str) -> None:
        """Forget a session, as Google does after a week."""
        with self._lock:
            self._sessions.pop(secret, None)

    def session_state(self, session: _Session) -> _Answer:
        """Answer 200 and the message, or 308 and how many bytes are kept."""
        if session.message:
            return _imported(session.message)
        kept = {"Range": f"bytes=0-{session.received - 1}"} if session.received else {}
        return _Answer(308, kept)

    def append(self, session: _Session, first: int, total: int | None, chunk: IO[bytes]) -> _Answer:
        """Keep a chunk's bytes, and import the email once all are there."""
        with session.lock:
            if session.message:
                return _imported(session.message)
            if first > session.received:
                text = f"Chunk starts at {first}, but only {session.received} bytes are here."
                raise _RefusedError(_gmail_error(400, "badRequest", text))
            session.total = total if total is not None else session.total
            chunk.seek(session.received - first)
            session.file.seek(session.received)
            shutil.copyfileobj(chunk, session.file, CHUNK_GRAIN)
            session.received = max(session.received, session.file.tell())
            if session.received == session.total:
                session.message = self.store(
                    session.mailbox, session.labels, session.query, session.file
                )
            else:
                # Only whole units are kept, so that the client can go on with legal chunks.
                session.received -= session.received % CHUNK_GRAIN
            return self.session_state(session)

    def store(
        self, mailbox: str, labels: tuple[str, ...], query: dict[str, str], file: IO[bytes]
    ) -> Message:
        """Put an email into a mailbox."""
        size = file.seek(0, 2)
        if not size:
            text = (
                "'raw' RFC822 payload message string or uploading message via /upload/* URL "
                "required"
            )
            raise _RefusedError(_gmail_error(400, "invalidArgument", text))
        date = time.time()
        if query.get("internalDateSource", "dateHeader") == "dateHeader":
            date = _date_header(file) or date
        with self._lock:
            self._imported += 1
            message = Message(
                secrets.token_hex(8), labels, query, size, self._imported, int(date * 1000), file
            )
            self._mailboxes[mailbox].append(message)
        return message

    def list_messages(self, mailbox: str, query: dict[str, list[str]]) -> _Answer:
        """Answer one page, newest first; SPAM and TRASH only on demand, as at Gmail."""
        if "q" in query:
            raise _RefusedError(_gmail_error(400, "invalidArgument", "q is not served here"))
        wanted = set(query.get("labelIds", []))
        hidden = {"SPAM", "TRASH"} - wanted
        if query.get("includeSpamTrash") == ["true"]:
            hidden = set()
        try:
            limit = int(query.get("maxResults", ["100"])[0])
            before = int(query.get("pageToken", [str(2**63)])[0])
        except ValueError:
            raise _RefusedError(_gmail_error(400, "invalidArgument", "Invalid value")) from None
        if not 1 <= limit <= 500:
            text = f"Invalid value '{limit}'. Values must be within the range: [1, 500]"
            raise _RefusedError(_gmail_error(400, "invalidArgument", text))
        found = [
            m
            for m in reversed(self.messages(mailbox))
            if wanted <= set(m.labels) and not hidden & set(m.labels)
        ]
        rest = [m for m in found if m.sequence < before]
        answer: dict[str, Any] = {"resultSizeEstimate": len(found)}
        if rest:
            answer["messages"] = [{"id": m.id, "threadId": m.id} for m in rest[:limit]]
        if len(rest) > limit:
            answer["nextPageToken"] = str(rest[limit - 1].sequence)
        return _json(answer)

    def get_message(self, mailbox: str, message_id: str, form: str) -> _Answer:
        """Answer one message in a format that needs no MIME parsing."""
        message = next((m for m in self.messages(mailbox) if m.id == message_id), None)
        if message is None:
            raise _RefusedError(_gmail_error(404, "notFound", "Requested entity was not found."))
        body: dict[str, Any] = {
            "id": message.id,
            "threadId": message.id,
            "labelIds": list(message.labels),
            "sizeEstimate": message.size,
            "internalDate": str(message.internal_date),
        }
        match form.lower():
            case "raw":
                body["raw"] = base64.urlsafe_b64encode(message.raw).decode()
            case "metadata":
                headers = email.message_from_bytes(_head(message.raw)).items()
                body["payload"] = {"headers": [{"name": n, "value": str(v)} for n, v in headers]}
            case "minimal":
                pass
            case _:
                text = f"format={form} is not served here, only raw, metadata and minimal"
                raise _RefusedError(_gmail_error(400, "invalidArgument", text))
        return _json(body)


def _head(raw: bytes) -> bytes:
    return re.split(rb"\r?\n\r?\n", raw, maxsplit=1)[0] + b"\r\n\r\n"


def _date_header(file: IO[bytes]) -> float | None:
    file.seek(0)
    head = email.message_from_bytes(_head(file.read(CHUNK_GRAIN)))
    try:
        return email.utils.parsedate_to_datetime(str(head["Date"])).timestamp()
    except (ValueError, OverflowError):
        return None


def _imported(message: Message) -> _Answer:
    return _json({"id": message.id, "threadId": message.id, "labelIds": list(message.labels)})


def _unauthenticated(reason: str, summary: str) -> _Answer:
    message = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential."
    )
    place = {"location": "Authorization", "locationType": "header"}
    errors = [{"message": summary, "domain": "global", "reason": reason, **place}]
    headers = {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'}
    return _gmail_error(401, reason, message, headers, errors=errors)


def _insufficient_scopes() -> _Answer:
    # Gmail sends both: `errors` with its old reason, and `details` that the client shows instead.
    errors = [
        {
            "message": "Insufficient Permission",
            "domain": "global",
            "reason": "insufficientPermissions",
        }
    ]
    details = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
            "domain": "googleapis.com",
            "metadata": {"service": GMAIL},
        }
    ]
    text = "Request had insufficient authentication scopes."
    return _gmail_error(403, "insufficientPermissions", text, errors=errors, details=details)


def _certify(directory: Path) -> ssl.SSLContext:
    """Make a throw-away authority and a server certificate; only the CA's certificate is left."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "google-ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    return context


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    google: Google
    tls: ssl.SSLContext

    def __init__(self, *args: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def server_bind(self) -> None:
        # HTTPServer would look the host's name up, which takes seconds without a network.
        socketserver.TCPServer.server_bind(self)

    def track(self, connection: socket.socket) -> None:
        self._connections.add(connection)

    def forget(self, connection: socket.socket) -> None:
        self._connections.discard(connection)

    def close_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                # The plain socket's shutdown: an SSLSocket's own would race with its reader.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Stay silent if a client goes away; anything else is a bug and may shout."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*_)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "ESF"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # one segment for headers and body

    IMPORT = re.compile(r"(?:/resumable)?/upload/gmail/v1/users/([^/]+)/messages/import")
    LIST = re.compile(r"/gmail/v1/users/([^/]+)/messages")
    GET = re.compile(r"/gmail/v1/users/([^/]+)/messages/([^/]+)")

    # -- connection --------------------------------------------------------------------------

    def setup(self) -> None:
        super().setup()
        self.tunnel: str | None = None
        self.server.track(self.connection)

    def finish(self) -> None:
        self.server.forget(self.connection)
        try:
            super().finish()
        finally:
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Log nothing: paths hold session secrets."""

    def do_CONNECT(self) -> None:
        host, _, port = self.path.partition(":")
        if self.tunnel or host not in HOSTS or port != "443":
            self.close_connection = True
            self._send(_Answer(403, body=f"{self.path} is not served here\n".encode()))
            return
        self.send_response_only(200, "Connection established")
        self.end_headers()
        self.wfile.flush()
        self.server.forget(self.connection)
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.server.track(self.connection)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        self.wfile = self.connection.makefile("wb", self.wbufsize)
        self.tunnel = host
        self.close_connection = False

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self._unread = int(self.headers.get("Content-Length") or 0)
        if self._unread and sys.platform == "linux":
            # The client holds the body back until its headers are acknowledged (Nagle), and the
            # kernel waits 40 ms with that: acknowledge now.
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            answer = self._route()
        except _RefusedError as refused:
            answer = refused.answer
        except _DroppedError:
            return
        self._send(answer)

    def _send(self, answer: _Answer) -> None:
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()
            if self.command != "CONNECT":
                self._skip_body()
        except OSError:
            self.close_connection = True

    def _read_body(self, limit: int | None = None) -> IO[bytes]:
        """Read the body, or `limit` bytes of it; shorter if the client went away."""
        body = self.server.google.spool()
        left = self._unread if limit is None else limit
        while left:
            try:
                data = self.rfile.read(min(left, CHUNK_GRAIN))
            except OSError:
                data = b""
            if not data:
                self.close_connection = True
                self._unread = 0
                break
            body.write(data)
            left -= len(data)
            self._unread -= len(data)
        body.seek(0)
        return body

    def _skip_body(self) -> None:
        while self._unread:
            data = self.rfile.read(min(self._unread, CHUNK_GRAIN))
            if not data:
                self.close_connection = True
                return
            self._unread -= len(data)

    def _drop(self, reset: bool) -> None:
        """Close without an answer: with a TCP reset, or as if the other side had gone."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.server.forget(self.connection)
        socket.close(self.connection.detach())
        raise _DroppedError

    # -- requests ----------------------------------------------------------------------------

    def _route(self) -> _Answer:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query, keep_blank_values=True)
        if self.command == "POST" and url.path == "/token" and self.tunnel in (None, OAUTH):
            return self._token()
        if self.command == "POST" and url.path == "/revoke" and self.tunnel in (None, OAUTH):
            return self.server.google.refuse_from_now(self._form().get("token", ""))
        if self.command == "GET" and url.path == AUTH_PATH and self.tunnel in (None, ACCOUNTS):
            return self.server.google.consent(self.query)
        if self.tunnel not in (OAUTH, ACCOUNTS):
            if found := self.IMPORT.fullmatch(url.path):
                if self.command == "POST":
                    return self._import(unquote(found[1]))
                if self.command == "PUT":
                    return self._put()
            elif self.command == "GET" and (found := self.LIST.fullmatch(url.path)):
                return self._list(unquote(found[1]))
            elif self.command == "GET" and (found := self.GET.fullmatch(url.path)):
                return self._get(unquote(found[1]), unquote(found[2]))
        raise _RefusedError(_gmail_error(404, "notFound", f"{self.command} {url.path} is not here"))

    @property
    def authorization(self) -> str:
        return str(self.headers.get("Authorization") or "")

    def _with_fault(self, kind: str, mailbox: str | None, work: Callable[[], _Answer]) -> _Answer:
        """Do the work of a request, unless a fault comes before or after it."""
        fault = self.server.google.take_fault(kind, mailbox)
        if fault is None:
            return work()
        if fault.when == "before":
            return self._suffer(fault, kind) or work()
        answer = work()
        return self._suffer(fault, kind) or answer

    def _suffer(self, fault: Fault, kind: str) -> _Answer | None:
        match fault.kind:
            case "slow":
                self.server.google.wait(fault.seconds)
                return None
            case "status":
                return _fault_answer(fault, kind)
            case _:
                if fault.kind == "hang":
                    self.server.google.wait(fault.seconds)
                self._drop(reset=fault.kind == "reset")
                return None

    def _form(self) -> dict[str, str]:
        text = self._read_body().read().decode(errors="replace")
        return {name: values[0] for name, values in parse_qs(text).items()}

    def _token(self) -> _Answer:
        google = self.server.google
        form = self._form()
        if self.authorization.startswith("Basic "):  # RFC 6749 §2.3.1
            told = base64.b64decode(self.authorization[6:]).decode()
            form["client_id"], _, form["client_secret"] = told.partition(":")
        return self._with_fault("token", google.mailbox_of_grant(form), lambda: google.grant(form))

    def _list(self, user: str) -> _Answer:
        google = self.server.google

        def work() -> _Answer:
            mailbox = google.authorize(user, self.authorization, SCOPE_READONLY)
            return google.list_messages(mailbox, self.query)

        return self._with_fault("list", google.resolve(user, self.authorization), work)

    def _get(self, user: str, message_id: str) -> _Answer:
        google = self.server.google

        def work() -> _Answer:
            mailbox = google.authorize(user, self.authorization, SCOPE_READONLY)
            return google.get_message(mailbox, message_id, self.query.get("format", ["full"])[0])

        return self._with_fault("get", google.resolve(user, self.authorization), work)

    def _import(self, user: str) -> _Answer:
        google = self.server.google
        upload_type = self.query.get("uploadType", [""])[0]
        parameters = {
            n: v[0] for n, v in self.query.items() if n not in ("uploadType", "alt", "prettyPrint")
        }

        def start() -> _Answer:
            mailbox = google.authorize(user, self.authorization, SCOPE_INSERT)
            _require_rfc822(self.headers.get("X-Upload-Content-Type", "message/rfc822"))
            declared = self.headers.get("X-Upload-Content-Length")
            labels = _labels(self._read_body().read())
            total = int(declared) if declared else None
            secret = google.open_session(mailbox, labels, parameters, total)
            # In a tunnel Host is Google's name: the session's address is absolute and https.
            scheme = "https" if self.tunnel else "http"
            host = self.tunnel or self.headers["Host"]
            place = f"{scheme}://{host}{self.path}&upload_id={secret}"
            return _Answer(200, {"Location": place, "X-GUploader-UploadID": secret})

        if upload_type != "resumable":
            # The product never makes the other kinds: a lost answer of theirs means a second copy.
            text = f"uploadType={upload_type} is not served here"
            raise _RefusedError(_gmail_error(400, "badRequest", text))
        return self._with_fault("start", google.resolve(user, self.authorization), start)

    def _put(self) -> _Answer:
        """Take a chunk, or answer a status request (`Content-Range: bytes */N`)."""
        google = self.server.google
        secret = self.query.get("upload_id", [""])[0]
        session = google.session(secret)
        if self.authorization:  # the address alone is a credential, but a bad token is refused
            google.authorize(session.mailbox, self.authorization, SCOPE_INSERT)
        length = self._unread
        declared = self.headers.get("Content-Range") or f"bytes 0-{length - 1}/{length}"
        if re.fullmatch(r"bytes \*/(\d+|\*)", declared) and not length:
            answer = self._with_fault("status", session.mailbox, lambda: self._state(session))
        else:
            answer = self._chunk(session, declared, length)
        if answer.status in (404, 410):
            google.end_session(secret)
        return answer

    def _state(self, session: _Session) -> _Answer:
        with session.lock:
            return self.server.google.session_state(session)

    def _chunk(self, session: _Session, declared: str, length: int) -> _Answer:
        google = self.server.google
        found = re.fullmatch(r"bytes (\d+)-(-?\d+)/(\d+|\*)", declared)
        if not found:
            raise _RefusedError(_gmail_error(400, "badRequest", f"Bad Content-Range: {declared}"))
        first, end = int(found[1]), int(found[2]) + 1
        total = None if found[3] == "*" else int(found[3])
        last = end == total
        if (
            end - first != length
            or (total is not None and (end > total or session.total not in (None, total)))
            or not (last or length % CHUNK_GRAIN == 0)
        ):
            text = (
                f"Invalid request: {declared} with {length} bytes. Chunks are multiples of "
                f"{CHUNK_GRAIN} bytes except the last, and the length is the one declared."
            )
            raise _RefusedError(_gmail_error(400, "badRequest", text))
        kind = "last_chunk" if last else "chunk"
        fault = google.take_fault(kind, session.mailbox)
        if fault and fault.when == "before" and (answer := self._suffer(fault, kind)):
            return answer
        kept = length // 2 // CHUNK_GRAIN * CHUNK_GRAIN if fault and fault.when == "mid" else None
        answer = google.append(session, first, total, self._read_body(kept))
        if fault and fault.when != "before":
            return self._suffer(fault, kind) or answer
        return answer
