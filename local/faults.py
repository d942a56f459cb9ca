"""Faults that the embedded cloud suffers, all from one seed: what goes wrong, where, and how often.

A worker process loads this file by its path and sees nothing else of this package, so it imports
only the standard library until a fault has to look like boto3's or httplib2's own.

Whether a call suffers is a function of the seed, the call's site (`dynamodb:UpdateItem`), who makes
it, the email's messageId, the attempt and the number of the call in it: never of time or chance, so
that one seed gives one schedule however the threads run.
"""

import dataclasses
import fnmatch
import hashlib
import importlib.util
import io
import json
import os
import re
import signal
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

# Server refuses, client sees an answer.
THROTTLE, ERROR, REJECT = "throttled", "5xx", "rejected"
# Client sees no answer; the server took the request, took half of it, or did not.
RESET_BEFORE, RESET_AFTER, RESET_MID = "reset before", "reset after", "reset midway"
TIMEOUT_BEFORE, TIMEOUT_AFTER = "timeout before", "timeout after"
SLOW = "slow answer"
# The whole process is gone.
KILL_BEFORE, KILL_AFTER, KILL_MID = "killed before", "killed after", "killed midway"
# Of deliveries and executions.
LOST, DUPLICATE, REORDER, ABORT = "lost", "duplicated", "reordered", "aborted"
# Nobody's doing: an invocation that Lambda ended because this machine was too slow for it.
TIMED_OUT = "timed out"
AFTER = (RESET_AFTER, TIMEOUT_AFTER, KILL_AFTER)
KILLED = (KILL_BEFORE, KILL_MID, KILL_AFTER)

STATE_MACHINE = "state-machine"
SLOW_SECONDS = 0.25  # real
CHUNK_GRAIN = 256 * 1024  # Gmail keeps whole units of an unfinished upload

# As SES gives them; the first one in a request's body or address says whose call it is.
_MESSAGE_ID = re.compile(r"(?<![0-9a-z])[0-9a-z]{40}(?![0-9a-z])")

# service → (HTTP status, code) of a refusal.
_THROTTLED = {
    "dynamodb": (400, "ProvisionedThroughputExceededException"),
    "lambda": (429, "TooManyRequestsException"),
    "s3": (503, "SlowDown"),
    "ses": (400, "Throttling"),
    "sqs": (400, "RequestThrottled"),
}
_FAILED = {"dynamodb": "InternalServerError", "s3": "InternalError"}
_LAMBDA_FAILED = ("ServiceException", "AWSLambdaException", "SdkClientException")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One kind of misbehaviour at the sites that a pattern names.

    `rate` of the calls suffer it; `keys` (message ids), `attempts` and `calls` (numbers from 0 of
    the invocation and of the call in it) narrow them down to a script. With `whole` the client
    library's own retries of the call suffer too.
    """

    kind: str
    site: str
    rate: float = 1.0
    by: str = "*"
    keys: Collection[str] | None = None
    attempts: Collection[int] | None = None
    calls: Collection[int] | None = None
    whole: bool = False

    def covers(self, site: str, by: str, key: str, attempt: int, call: int) -> bool:
        return (
            (self.keys is None or key in self.keys)
            and (self.attempts is None or attempt in self.attempts)
            and (self.calls is None or call in self.calls)
            and fnmatch.fnmatchcase(by, self.by)
            and fnmatch.fnmatchcase(site, self.site)
        )


_CALL = (
    *(THROTTLE, ERROR, RESET_BEFORE, RESET_AFTER),
    *(TIMEOUT_BEFORE, TIMEOUT_AFTER, SLOW, KILL_BEFORE, KILL_AFTER),
)
# Where a fault can be named on a command line, and which kinds mean something there.
PLACES: Mapping[str, Collection[str]] = {
    **dict.fromkeys(("s3", "dynamodb", "ssm", "sqs", "sfn", "oauth", "gmail"), _CALL),
    "ses": (*_CALL, REJECT),
    "gmail:Start": (*_CALL, REJECT),
    "gmail:Chunk": (*_CALL, RESET_MID, KILL_MID),
    "lambda:Invoke": (THROTTLE, ERROR, RESET_BEFORE, RESET_AFTER, SLOW),
    "lambda:Starter": (ERROR, RESET_AFTER),
    "sns:Deliver": (LOST, DUPLICATE),
    "events:Deliver": (LOST, DUPLICATE),
    "sqs:Receive": (DUPLICATE,),
    "sqs:Order": (REORDER,),
    "states:Execution": (ABORT,),
}


def parse(text: str) -> list[Fault]:
    """`KIND@SITE=RATE, …` as typed on a command line; ValueError says what is wrong.

    >>> parse("killed-after@gmail:Chunk=0.1")[0].kind
    'killed after'
    """
    return [_parse_one(part.strip()) for part in text.split(",") if part.strip()]


def _parse_one(text: str) -> Fault:
    kind, _, rest = text.partition("@")
    site, _, rate = rest.partition("=")
    service = site.partition(":")[0]
    allowed = PLACES.get(site, PLACES.get(service))
    if allowed is None:
        known = ", ".join(PLACES)
        raise ValueError(f"{text!r}: no such site; known are {known}, and any of their calls")
    kind = kind.replace("-", " ")
    if kind not in allowed:
        raise ValueError(f"{text!r}: the kinds at {site} are {', '.join(allowed)}")
    if ":" not in site:
        # The queue's other sites are the pipe's, with kinds of their own.
        site += ":SendMessage" if site == "sqs" else ":*"
    try:
        share = float(rate or 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r}: a rate is a number between 0 and 1")
    return Fault(kind, site, share, whole=True)


def decide(
    seed: int, faults: Iterable[Fault], site: str, by: str, key: str, attempt: int, call: int
) -> Fault | None:
    """The first fault whose draw hits this call."""
    for number, fault in enumerate(faults):
        if fault.covers(site, by, key, attempt, call):
            drawn = hashlib.sha256(f"{seed} {number} {site} {by} {key} {attempt} {call}".encode())
            if int.from_bytes(drawn.digest()[:7], "big") < fault.rate * 2**56:
                return fault
    return None


def message_id_in(*texts: str) -> str:
    """The first SES message id in the texts, or an empty string."""
    for text in texts:
        if match := _MESSAGE_ID.search(text):
            return match[0]
    return ""


@dataclasses.dataclass(frozen=True)
class Fired:
    """One fault that really happened; `whole` as in Fault, `about` says what the call was for: of a
    bounce `sending gone@one.example`, of a forward the mailbox, of an invocation by the state
    machine the function and the mailbox."""

    kind: str
    site: str
    by: str
    key: str
    attempt: int
    call: int
    whole: bool = False
    about: str = ""


class Faults:
    """The faults of one cloud, on the side that starts the processes; thread-safe.

    `faults` may be replaced at any time and holds from the next call or invocation on.
    """

    def __init__(self, seed: int = 0, faults: Iterable[Fault] = ()) -> None:
        self.seed = seed
        self.faults = list(faults)
        self.log: Path | None = None  # given by the cloud that it is used in
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def heal(self) -> None:
        """No more faults."""
        self.faults = []

    def strike(self, site: str, by: str, key: str, about: str = "") -> str | None:
        """Kind of the fault that this call, counted by site and key, suffers; records it."""
        if not self.faults:
            return None
        call = self._count(site, by, key)
        fault = decide(self.seed, self.faults, site, by, key, 0, call)
        if fault is None:
            return None
        assert self.log
        _record(self.log, Fired(fault.kind, site, by, key, 0, call, about=about))
        return fault.kind

    def _count(self, *what: str) -> int:
        with self._lock:
            self._counts[what] += 1
            return self._counts[what] - 1

    def instructions(self, function: str, event: Any) -> dict[str, Any] | None:
        """What a worker has to know for one invocation; None if nothing can happen."""
        faults = [f for f in self.faults if fnmatch.fnmatchcase(function, f.by)]
        if not faults:
            return None
        if isinstance(event, list):
            # A batch: each record has an email and an attempt of its own.
            records = {
                message_id_in(record["body"]): int(
                    record["attributes"].get("ApproximateReceiveCount", 1)
                )
                - 1
                for record in event
            }
            key, attempt, about = "", 0, ""
        else:
            records = {}
            key = event.get("messageId") or message_id_in(json.dumps(event))
            target = str(event.get("delivery", {}).get("target", ""))
            attempt = self._count("invocation", function, key, target)
            about = target
        return {
            "seed": self.seed,
            "faults": [
                _plain(fault, key)
                for fault in faults
                if fault.keys is None or key in fault.keys or records
            ],
            "by": function,
            "key": key,
            "attempt": attempt,
            "attempts": records,
            "about": about,
            "log": str(self.log),
        }

    def timed_out(self, function: str, event: Any) -> None:
        """Record an invocation that was ended for its time-out."""
        if self.log:
            key = message_id_in(json.dumps(event))
            delivery = event.get("delivery", {}) if isinstance(event, dict) else {}
            about = " ".join(delivery.get("recipients", []))
            _record(self.log, Fired(TIMED_OUT, "lambda:Timeout", function, key, 0, 0, True, about))

    def fired(self) -> list[Fired]:
        """Everything that happened so far."""
        if self.log is None or not self.log.exists():
            return []
        return [Fired(**json.loads(line)) for line in self.log.read_text().splitlines()]

    def suffer_state_machine(self, client: Any) -> None:
        """Let the state machine's calls through this client suffer."""
        client.meta.events.register("before-send", self._state_machine)

    def _state_machine(self, request: Any, event_name: str, **_: Any) -> Any:
        service, operation = event_name.split(".")[1:]
        body = request.body or b""
        text = body.decode() if isinstance(body, bytes) else str(body)
        site, key = f"{service}:{operation}", message_id_in(text)
        about = about_invocation(request.url, text) if service == "lambda" else ""
        kind = self.strike(site, STATE_MACHINE, key, about)
        return kind and suffer_aws(kind, service, request, text, by_state_machine=True)


def _plain(fault: Fault, key: str) -> dict[str, Any]:
    plain = dataclasses.asdict(fault)
    # A script may name hundreds of emails, of which this invocation is one.
    plain["keys"] = None if fault.keys is None else ([key] if key else sorted(fault.keys))
    return {
        name: list(value) if isinstance(value, (tuple, set, frozenset)) else value
        for name, value in plain.items()
    }


def _record(log: Path | str, fired: Fired) -> None:
    line = json.dumps(dataclasses.asdict(fired)) + "\n"
    # One write of a short line is whole, whoever else appends.
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


class Sufferer:
    """A worker's side: installed before the handler is imported, told of each invocation."""

    def __init__(self) -> None:
        self._told: Mapping[str, Any] | None = None
        self._faults: list[Fault] = []
        self._call = 0
        self._invocation = b""
        self._fault: Fault | None = None

    def install(self) -> None:
        import boto3

        boto3.setup_default_session()
        session: Any = boto3.DEFAULT_SESSION
        session.events.register("before-send", self._aws)
        if importlib.util.find_spec("httplib2"):
            import httplib2

            httplib2.Http.request = self._google(httplib2.Http.request)

    def begin(self, told: Mapping[str, Any] | None) -> None:
        """Start an invocation with what Faults.instructions said."""
        self._told = told
        self._faults = [Fault(**fault) for fault in told["faults"]] if told else []
        self._call = 0

    def _strike(self, site: str, text: str, about: str = "") -> Fault | None:
        told = self._told
        if told is None:
            return None
        key = told["key"] or message_id_in(text)
        attempt = told["attempts"].get(key, told["attempt"])
        call, self._call = self._call, self._call + 1
        fault = decide(told["seed"], self._faults, site, told["by"], key, attempt, call)
        if fault:
            about = about or told["about"]
            fired = Fired(fault.kind, site, told["by"], key, attempt, call, fault.whole, about)
            _record(told["log"], fired)
        return fault

    def _aws(self, request: Any, event_name: str, **_: Any) -> Any:
        service, operation = event_name.split(".")[1:]
        invocation = request.headers.get("amz-sdk-invocation-id")
        if invocation != self._invocation:
            self._invocation = invocation
            body = request.body or b""
            text = body.decode("latin-1") if isinstance(body, bytes) else str(body)
            self._fault = self._strike(
                f"{service}:{operation}", f"{text} {request.url}", about_bounce(service, text)
            )
        elif self._fault and not self._fault.whole:
            self._fault = None
        fault = self._fault
        return fault and suffer_aws(fault.kind, service, request)

    def _google(self, original: Any) -> Any:
        def request(
            http: Any,
            uri: str,
            method: str = "GET",
            body: Any = None,
            headers: Any = None,
            **more: Any,
        ) -> Any:
            fault = self._strike(_google_site(uri, method, headers or {}), "")

            def go_on() -> Any:
                return original(http, uri, method, body=body, headers=headers, **more)

            if fault is None:
                return go_on()
            if fault.kind in (KILL_MID, RESET_MID):
                half = len(body) // 2 // CHUNK_GRAIN * CHUNK_GRAIN
                if half:
                    begin, _, total = re.split(
                        "[-/]", headers["Content-Range"].removeprefix("bytes ")
                    )
                    part = f"bytes {begin}-{int(begin) + half - 1}/{total}"
                    cut = {**headers, "Content-Range": part, "Content-Length": str(half)}
                    original(http, uri, method, body=body[:half], headers=cut, **more)
            elif fault.kind in AFTER:
                go_on()
            elif fault.kind == SLOW:
                time.sleep(SLOW_SECONDS)
                return go_on()
            elif fault.kind in (THROTTLE, ERROR, REJECT):
                return _google_refusal(fault.kind, uri, self._call)
            _vanish(fault.kind, lambda: ConnectionResetError(104, "reset"), lambda: TimeoutError())
            raise AssertionError(fault.kind)

        return request


def about_invocation(url: str, body: str) -> str:
    """`function mailbox` of a request that invokes a function for a delivery."""
    function = re.search(r"ses-mail-[a-z-]+", urllib.parse.unquote(url))
    target = json.loads(body).get("delivery", {}).get("target", "")
    return f"{function[0] if function else ''} {target}".strip()


def about_bounce(service: str, body: str) -> str:
    """`state recipient …` of a write of the deliveries table or of a SendBounce, else nothing.

    The states are the table's; `given-back` is a claim whose lease is over at once.
    """
    if service == "ses":
        found = re.findall(r"Recipient=([^&]+)", body)
        return " ".join(["SendBounce", *sorted({urllib.parse.unquote(r) for r in found})])
    recipients = re.findall(r'"BOUNCE#([^"#]+)', body) if service == "dynamodb" else []
    values = set(re.findall(r'\{"[SN]": "(\w+)"\}', body))
    written = [state for state in ("sending", "bounced", "suppressed") if state in values]
    if not recipients or not ("claimed" in values or written):
        return ""
    state = written[0] if written else "given-back" if "0" in values else "claimed"
    return " ".join([state, *sorted(set(recipients))])


def _vanish(kind: str, reset: Any, timeout: Any) -> None:
    """End the process, or the call without an answer."""
    if kind in KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind in (RESET_BEFORE, RESET_MID, RESET_AFTER):
        raise reset()
    if kind in (TIMEOUT_BEFORE, TIMEOUT_AFTER):
        raise timeout()


def suffer_aws(
    kind: str, service: str, request: Any, salt: str = "", by_state_machine: bool = False
) -> Any:
    """Do to a request that is about to go out what the fault says; an answer replaces the real one,
    None lets it through. `salt` chooses between equals."""
    from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
    from botocore.httpsession import URLLib3Session

    if kind == SLOW:
        time.sleep(SLOW_SECONDS)
        return None
    if kind in (THROTTLE, ERROR, REJECT):
        return _refusal(kind, service, request.url, salt)
    if kind in AFTER:
        URLLib3Session().send(request)
    if by_state_machine:
        # What Step Functions makes of an answer that it does not get.
        return error_response(service, request.url, 500, "SdkClientException")
    _vanish(
        kind,
        lambda: ConnectionClosedError(endpoint_url=request.url),
        lambda: ReadTimeoutError(endpoint_url=request.url),
    )
    raise AssertionError(kind)


def _refusal(kind: str, service: str, url: str, salt: str) -> Any:
    if kind == THROTTLE:
        status, code = _THROTTLED.get(service, (400, "ThrottlingException"))
    elif kind == REJECT:
        status, code = 400, "MessageRejected"
    elif service == "lambda":
        choice = hashlib.sha256(salt.encode()).digest()[0] % len(_LAMBDA_FAILED)
        status, code = 500, _LAMBDA_FAILED[choice]
    else:
        status, code = 500, _FAILED.get(service, "InternalFailure")
    return error_response(service, url, status, code)


class _Raw(io.BytesIO):
    def stream(self, *_: Any, **__: Any) -> Any:
        while piece := self.read():
            yield piece


def response(url: str, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
    """What botocore takes for an answer of AWS."""
    from botocore.awsrequest import AWSResponse

    given: Any = headers or {}
    return AWSResponse(url, status, given, _Raw(body))


def error_response(service: str, url: str, status: int, code: str) -> Any:
    """AWS's refusal, in the service's own protocol."""
    text = f"{code} (injected)"
    if service == "s3":
        body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>"
    elif service == "ses":
        error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error>"
        body = f"<ErrorResponse>{error}<RequestId>local</RequestId></ErrorResponse>"
    else:
        body = json.dumps({"__type": code, "message": text})
    headers = {"x-amzn-errortype": code, "x-amzn-requestid": "local"}
    return response(url, status, body.encode(), headers)


def _google_site(uri: str, method: str, headers: Mapping[str, str]) -> str:
    if method == "PUT":
        return "gmail:Status" if headers["Content-Range"].startswith("bytes */") else "gmail:Chunk"
    return "oauth:Token" if uri.endswith("/token") else "gmail:Start"


def _google_refusal(kind: str, uri: str, salt: int) -> Any:
    import httplib2

    if kind == THROTTLE:
        status, reason = (429, "rateLimitExceeded") if salt % 2 else (403, "userRateLimitExceeded")
    elif kind == REJECT:
        status, reason = 400, "failedPrecondition"
    else:
        status, reason = (500, 502, 503, 504)[salt % 4], "backendError"
    error = {"code": status, "message": "injected", "errors": [{"reason": reason}]}
    body = json.dumps({"error": reason if uri.endswith("/token") else error}).encode()
    if status == 502:
        body = b"<!DOCTYPE html><title>Error 502</title>"
    return httplib2.Response({"status": str(status), "retry-after": "5"}), body
