"""SES: takes email in by SMTP or by call, stores and announces it, and sends bounces."""

from __future__ import annotations

import asyncio
import email.header
import email.parser
import email.policy
import email.utils
import json
import secrets
import string
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from moto.core.responses import ActionResult
from moto.ses.exceptions import SesError
from moto.ses.responses import EmailResponse

from local.asl import iso

MAXIMUM_EMAIL = 40 * 1024 * 1024
MAXIMUM_RECIPIENTS = 100
MAXIMUM_HEADERS = 10 * 1024  # bytes of headers in a notification
BOUNCE_WINDOW = 24 * 3600.0  # seconds after receipt in which SendBounce works

VERDICTS = ("spam", "virus", "spf", "dkim", "dmarc")
# Only what SES's API reference requires of the parameters; `Recipient` is checked per item.
REQUIRED = ("OriginalMessageId", "BounceSender", "BouncedRecipientInfoList")

MESSAGE_ID_CHARACTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class ReceiptRule:
    """The template's receipt rule; `recipients` are domains, `.domains` with their subdomains, or
    addresses, and `*` stands for any."""

    recipients: Sequence[str]
    enabled: bool
    scan: bool
    bucket: str
    prefix: str
    topic: str

    def matches(self, address: str) -> bool:
        domain = address.rpartition("@")[2].lower()
        return self.enabled and any(
            entry in {"*", domain, address.lower()}
            or (entry.startswith(".") and domain.endswith(entry))
            for entry in map(str.lower, self.recipients)
        )


@dataclass(frozen=True)
class _Received:
    at: float
    sender: str
    recipients: Sequence[str]


class Ses:
    """Inbound SES with one receipt rule, and SendBounce.

    `bounces` are what SendBounce accepted.
    """

    def __init__(
        self, rule: ReceiptRule, client: Callable[[str], Any], now: Callable[[], float]
    ) -> None:
        self.rule = rule
        self.bounces: list[dict[str, Any]] = []
        self.notifications: dict[str, str] = {}  # what was published, by messageId
        self._s3 = client("s3")
        self._sns = client("sns")
        self._now = now
        self._received: dict[str, _Received] = {}
        self._lock = threading.Lock()

    def install(self) -> None:
        """Add SendBounce and GetAccountSendingEnabled to moto, which has no such operations."""
        EmailResponse.send_bounce = lambda response: ActionResult(
            {
                "MessageId": self.send_bounce(
                    response._get_params(), response.headers.get("X-Amzn-Trace-Id", "")
                )
            }
        )
        EmailResponse.get_account_sending_enabled = lambda _: ActionResult(
            {"Enabled": True}  # nothing here stops the account from sending
        )

    def uninstall(self) -> None:
        del EmailResponse.send_bounce, EmailResponse.get_account_sending_enabled

    def receive(
        self,
        raw: bytes,
        sender: str,
        recipients: Sequence[str],
        verdicts: Mapping[str, str],
        dmarc_policy: str | None,
        message_id: str | None,
        at: float | None,
    ) -> str:
        """Store and announce one email; returns its messageId. Raises ValueError if it is too large
        or no recipient matches the rule."""
        matched = [address for address in recipients if self.rule.matches(address)]
        if not matched:
            raise ValueError(f"no receipt rule matches {', '.join(recipients)}")
        if len(raw) > MAXIMUM_EMAIL:
            raise ValueError(f"{len(raw)} bytes; SES takes {MAXIMUM_EMAIL}")
        stored, switches = strip_switches(raw)
        at = self._now() if at is None else at
        message_id = message_id or "".join(secrets.choice(MESSAGE_ID_CHARACTERS) for _ in range(40))
        self.take_in(message_id, sender, matched, at)
        key = self.rule.prefix + message_id
        self._s3.put_object(Bucket=self.rule.bucket, Key=key, Body=stored)
        unscanned = {} if self.rule.scan else {"spam": "DISABLED", "virus": "DISABLED"}
        notification = {
            "notificationType": "Received",
            "mail": self._mail(stored, sender, message_id, at),
            "receipt": self._receipt(
                matched,
                {**dict.fromkeys(VERDICTS, "PASS"), **switches, **verdicts, **unscanned},
                dmarc_policy or switches.get("dmarc-policy"),
                at,
                key,
            ),
        }
        self.notifications[message_id] = json.dumps(notification)
        self.publish(self.notifications[message_id])
        return message_id

    def take_in(self, message_id: str, sender: str, recipients: Sequence[str], at: float) -> None:
        """Know an email, so that it can be bounced."""
        with self._lock:
            self._received[message_id] = _Received(at, sender, recipients)

    def publish(self, message: str) -> None:
        """Send a notification to the topic as SES does."""
        self._sns.publish(
            TopicArn=self.rule.topic,
            Subject="Amazon SES Email Receipt Notification",
            Message=message,
        )

    def _mail(self, raw: bytes, sender: str, message_id: str, at: float) -> dict[str, Any]:
        headers = parse_headers(raw)
        shown: list[dict[str, str]] = []
        size = 0
        for name, value in headers:
            size += len(name) + len(value.encode()) + 4  # `: ` and the end of the line
            if size > MAXIMUM_HEADERS:
                break
            shown.append({"name": name, "value": value})
        return {
            "timestamp": iso(at),
            "source": sender,
            "messageId": message_id,
            "destination": _addresses(headers, "to") + _addresses(headers, "cc"),
            "headersTruncated": len(shown) < len(headers),
            "headers": shown,
            "commonHeaders": _common_headers(headers, sender),
        }

    def _receipt(
        self,
        recipients: Sequence[str],
        verdicts: Mapping[str, str],
        dmarc_policy: str | None,
        at: float,
        key: str,
    ) -> dict[str, Any]:
        receipt: dict[str, Any] = {
            "timestamp": iso(at),
            "processingTimeMillis": 500,
            "recipients": list(recipients),
            **{f"{name}Verdict": {"status": verdicts[name]} for name in VERDICTS},
            "action": {
                "type": "S3",
                "topicArn": self.rule.topic,
                "bucketName": self.rule.bucket,
                "objectKeyPrefix": self.rule.prefix,
                "objectKey": key,
            },
        }
        if verdicts["dmarc"] == "FAIL":
            receipt["dmarcPolicy"] = (dmarc_policy or "none").lower()
        return receipt

    def send_bounce(self, params: Mapping[str, Any], trace: str = "") -> str:
        """Id of the bounce; raises what SES answers. `trace` is the caller's X-Ray header."""
        with self._lock:
            self._check(params)
            original = self._received[params["OriginalMessageId"]]
            answered = secrets.token_hex(30)
            self.bounces.append(
                {
                    "id": answered,
                    "trace": trace,
                    "to": original.sender,
                    "sender": params["BounceSender"],
                    "recipients": [
                        item["Recipient"] for item in params["BouncedRecipientInfoList"]
                    ],
                    "messageId": params["OriginalMessageId"],
                    "request": dict(params),
                }
            )
        return answered

    def _check(self, params: Mapping[str, Any]) -> None:
        for name in REQUIRED:
            if not params.get(name):
                raise SesError("ValidationError", f"{name} is required")
        original = self._received.get(params["OriginalMessageId"])
        if original is None or self._now() - original.at > BOUNCE_WINDOW:
            raise SesError(
                "MessageRejected",
                f"Message {params['OriginalMessageId']} was not received in the last 24 hours.",
            )
        known = {address.lower() for address in original.recipients}
        for item in params["BouncedRecipientInfoList"]:
            if item.get("Recipient", "").lower() not in known:
                raise SesError("MessageRejected", f"{item.get('Recipient')} was not a recipient.")
            if not item.get("BounceType") and not item.get("RecipientDsnFields"):
                raise SesError("ValidationError", "BounceType or RecipientDsnFields is required")
        if not self.rule.matches(params["BounceSender"]):
            raise SesError(
                "MessageRejected",
                f"Email address is not verified: {params['BounceSender']}",
            )


def strip_switches(raw: bytes) -> tuple[bytes, dict[str, str]]:
    """The email without its X-Local-* header lines, and what they say.

    `X-Local-Spam: FAIL` becomes {"spam": "FAIL"}, `X-Local-DMARC-Policy` "dmarc-policy". Every
    other byte stays as it is.
    """
    switches: dict[str, str] = {}
    kept: list[bytes] = []
    rest = raw
    dropping = False
    while rest:
        line, newline, remainder = rest.partition(b"\n")
        if not line.strip(b"\r"):
            break
        rest = remainder
        if line[:1] not in b" \t" or not kept:
            dropping = line.lower().startswith(b"x-local-")
            if dropping:
                name, _, value = line.decode("ascii", "replace").partition(":")
                key = name.strip().lower().removeprefix("x-local-")
                value = value.strip()
                switches[key] = value if key == "dmarc-policy" else value.upper()
        if not dropping:
            kept.append(line + newline)
    if not switches:
        return raw, {}
    return b"".join(kept) + rest, switches


def parse_headers(raw: bytes) -> list[tuple[str, str]]:
    """Header names and unfolded values in order; bytes that are no UTF-8 become U+FFFD."""
    ends = [i for i in (raw.find(b"\r\n\r\n"), raw.find(b"\n\n")) if i >= 0]
    block = raw[: min(ends)] if ends else raw[: 1024 * 1024]
    message = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(block)
    return [(name, _text(value)) for name, value in message.raw_items()]


def _text(value: str) -> str:
    unfolded = " ".join(line.strip() for line in value.splitlines())
    return unfolded.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _values(headers: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for key, value in headers if key.lower() == name]


def _addresses(headers: Sequence[tuple[str, str]], name: str) -> list[str]:
    pairs = email.utils.getaddresses(_values(headers, name))
    return [address for _, address in pairs if address]


def _common_headers(headers: Sequence[tuple[str, str]], sender: str) -> dict[str, Any]:
    common: dict[str, Any] = {"returnPath": sender}
    for key, name in (("from", "from"), ("to", "to"), ("cc", "cc"), ("replyTo", "reply-to")):
        values = _values(headers, name)
        if values:
            common[key] = [part.strip() for value in values for part in value.split(",")]
    for key, name in (("date", "date"), ("messageId", "message-id"), ("subject", "subject")):
        values = _values(headers, name)
        if values:
            common[key] = _decoded(values[0])
    return common


def _decoded(value: str) -> str:
    try:
        return str(email.header.make_header(email.header.decode_header(value)))
    except (LookupError, UnicodeError, ValueError):
        return value


class _Protocol(SMTP):
    # RFC 5321 allows 1,000 bytes, but mail with longer lines exists and SES takes it.
    line_length_limit = MAXIMUM_EMAIL


class SmtpServer:
    """SMTP in front of Ses: envelope recipients become `receipt.recipients`."""

    def __init__(self, ses: Ses, host: str, port: int) -> None:
        self._ses = ses
        self._loop = asyncio.new_event_loop()
        # The port is taken here, so that a taken one raises OSError where it can be reported.
        self._server = self._loop.run_until_complete(
            self._loop.create_server(self._protocol, host, port, backlog=256)
        )
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        self._thread = threading.Thread(target=self._loop.run_forever, name="smtp", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _protocol(self) -> SMTP:
        return _Protocol(
            self,
            data_size_limit=MAXIMUM_EMAIL,
            hostname="ses.local",
            ident="SES of the embedded cloud",
            loop=self._loop,
        )

    # -- hooks of aiosmtpd, named by it ------------------------------------------------------------

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if not self._ses.rule.matches(address):
            return "550 5.1.1 no receipt rule takes mail for this address"
        if len(envelope.rcpt_tos) >= MAXIMUM_RECIPIENTS:
            return "452 4.5.3 too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        sender, recipients = envelope.mail_from or "", list(envelope.rcpt_tos)
        message_id = await self._loop.run_in_executor(
            None, lambda: self._ses.receive(content, sender, recipients, {}, None, None, None)
        )
        return f"250 2.0.0 OK {message_id}"
