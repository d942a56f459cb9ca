"""No secret and no content of an email in logs, histories, queues or tables, whatever goes wrong.

The search is given every secret that Google gave out in this run and a mark that stands in every
email's body and subject. It is proven on copies in which a secret was planted.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from moto.sqs.models import Queue

from local.cloud import parameter_name
from local.google import Fault, Google

from .kit import Post

BODY, SUBJECT, ATTACHED = "canary-body-7f3a91", "canary-subject-5d02c8", "canary-attached-19be44"
CONTENT = {"body": BODY, "subject": SUBJECT, "attachment": ATTACHED}
EMAIL = (
    f"From: Jane <jane@partner.example>\r\nSubject: {SUBJECT}\r\n\r\n{BODY}\r\n{ATTACHED}\r\n"
).encode()


@dataclass(frozen=True)
class Place:
    """Where text may leak to; ses = SES wrote it, which puts the subject into its notifications."""

    name: str
    text: str
    ses: bool = False


@dataclass(frozen=True)
class Found:
    secret: str
    place: str


def forms(secret: str) -> set[str]:
    """The ways in which text hides in text."""
    return {
        secret,
        json.dumps(secret)[1:-1],
        quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode().rstrip("="),
    }


def search(places: Iterable[Place], secrets: Mapping[str, str]) -> list[Found]:
    """Every secret in every place, but for the subject in what SES wrote."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    return [
        Found(name, place.name)
        for place in places
        for name, texts in wanted.items()
        if any(text in place.text for text in texts) and not (name == "subject" and place.ses)
    ]


# -- what the run leaves behind --------------------------------------------------------------------


class Traffic:
    """Every message that any queue ever got."""

    def __init__(self) -> None:
        self.messages: list[Place] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original, messages = Queue.add_message, self.messages

        def watching(queue: Any, message: Any) -> None:
            attributes = {name: str(value) for name, value in message.message_attributes.items()}
            messages.append(
                Place(
                    f"queue {queue.name}",
                    message.body + json.dumps(attributes),
                    ses='"notificationType"' in message.body,
                )
            )
            original(queue, message)

        monkeypatch.setattr(Queue, "add_message", watching)


def logs(post: Post) -> list[Place]:
    """What all functions wrote to stdout and stderr, EMF lines included."""
    return [
        Place(f"log {path.name}", path.read_text(errors="replace"))
        for path in sorted(post.cloud.runtime.directory.glob("*.log"))
    ]


def traces(post: Post) -> list[Place]:
    """What the functions sent to X-Ray."""
    return [Place("trace", document) for document in post.cloud.traces.documents]


def histories(post: Post) -> list[Place]:
    return [
        Place(
            f"history {execution['name']}",
            json.dumps([execution, post.cloud.history(execution["executionArn"])], default=str),
        )
        for execution in post.cloud.executions()
    ]


def items(post: Post) -> list[dict[str, Any]]:
    pages = post.cloud.client("dynamodb").get_paginator("scan")
    table = post.cloud.resource("DeliveriesTable")
    return [item for page in pages.paginate(TableName=table) for item in page["Items"]]


def records(post: Post, but: Callable[[str], bool] = lambda _: False) -> list[Place]:
    """The deliveries table, without the attributes for whose name `but` holds."""
    return [
        Place(
            f"record {item['PK']['S']} {item['SK']['S']}",
            json.dumps({name: value for name, value in item.items() if not but(name)}),
        )
        for item in items(post)
    ]


# -- the run ---------------------------------------------------------------------------------------


@dataclass
class Aftermath:
    """places: all that can leak; secrets by name; stored: the session that stood in the table when
    an attempt had crashed, and what that table was then."""

    places: list[Place]
    secrets: dict[str, str]
    stored: str
    during: list[dict[str, Any]]


@pytest.fixture(scope="module")
def aftermath(post: Post) -> Iterator[Aftermath]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        traffic = Traffic()
        traffic.watch(monkeypatch)
        secrets: dict[str, str] = dict(CONTENT)
        _note_what_google_gives_out(post.cloud.google, monkeypatch, secrets)
        _service_accounts(post, secrets)
        stored, during = _everything_that_goes_wrong(post)
        _stopped(post)
        # The hour of what runs by schedule: the token monitor looks at all these tokens.
        post.cloud.events.tick()
        secrets |= post.cloud.google.secrets()
        yield Aftermath(
            [
                *(*logs(post), *traces(post), *histories(post)),
                *(*traffic.messages, *records(post)),
            ],
            secrets,
            stored,
            during,
        )


def _note_what_google_gives_out(
    google: Google, monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str]
) -> None:
    open_session, grant = google.open_session, google.grant

    def opening(*args: Any) -> str:
        session = open_session(*args)
        secrets[f"upload session {len(secrets)}"] = session
        return session

    def granting(form: dict[str, str]) -> Any:
        if "assertion" in form:
            secrets[f"signed assertion {len(secrets)}"] = form["assertion"]
        answer = grant(form)
        secrets[f"access token {len(secrets)}"] = json.loads(answer.body)["access_token"]
        return answer

    monkeypatch.setattr(google, "open_session", opening)
    monkeypatch.setattr(google, "grant", granting)


def _service_accounts(post: Post, secrets: dict[str, str]) -> None:
    """Two mailboxes with keys in their parameters: one may be spoken for, the other not."""
    google = post.cloud.google
    for allowed in (True, False):
        recipient, mailbox = post.forwarded()
        account = google.add_service_account([mailbox if allowed else post.mailbox(False)])
        post.cloud.client("ssm").put_parameter(
            Name=f"/ses-mail/test/gmail-tokens/{parameter_name(mailbox)}",
            Value=json.dumps(account),
            Type="SecureString",
            Overwrite=True,
        )
        # A line from the middle: nobody would log all of it.
        secrets[f"private key of {mailbox}"] = account["private_key"].splitlines()[7]
        post.send(recipient, raw=EMAIL)
        post.cloud.wait_idle()
        assert post.copies(mailbox) == allowed
    (letter,) = post.take()
    assert letter.failure["error"] == "GmailTokenError"


def _everything_that_goes_wrong(post: Post) -> tuple[str, list[dict[str, Any]]]:
    google = post.cloud.google

    def fault(mailbox: str, on: str, **options: Any) -> None:
        google.faults.append(Fault(on=on, mailbox=mailbox, message=f"no {on}", **options))

    def send(*recipients: str, **options: Any) -> str:
        return post.send(*recipients, raw=EMAIL, **options)

    sent = [send(post.forwarded()[0])]
    recipient, mailbox = post.forwarded()
    large = EMAIL + BODY.encode() * (6 * 1024 * 1024 // len(BODY))
    sent.append(post.send(recipient, raw=large))
    for on, options in (
        ("start", {"status": 429, "reason": "rateLimitExceeded", "times": 2}),
        ("last_chunk", {"status": 503, "html": True, "times": 2}),
        ("last_chunk", {"kind": "reset", "when": "after"}),
        ("last_chunk", {"status": 410, "reason": "notFound"}),
        ("last_chunk", {"status": 401, "reason": "authError"}),
        ("token", {"status": 503, "html": True}),
        ("token", {"status": 200, "body": b"no JSON"}),
    ):
        recipient, mailbox = post.forwarded()
        fault(mailbox, on, **options)
        sent.append(send(recipient))
    # Dead letters: the token revoked, the email refused, the wrong person's credentials, no rule …
    revoked, mailbox = post.forwarded()
    google.revoke(mailbox)
    refused, other = post.forwarded()
    fault(other, "last_chunk", status=400, reason="invalidArgument")
    typo, missing = post.address("typo"), post.address("forward-to-gmail", post.mailbox(False))
    denied, third = post.forwarded()
    fault(third, "start", status=403, reason="forbidden")
    # … and bounces: sent, refused by SES, suppressed.
    sent += [send(revoked, refused, typo, missing, denied), send(post.address("bounce"))]
    sent.append(send(post.address("bounce"), sender=""))
    post.cloud.wait_idle()
    post.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    sent.append(send(post.address("bounce")))
    post.cloud.wait_idle()
    letters = post.take()
    assert len(letters) == 6
    post.cloud.add_mailbox(mailbox)
    post.redrive(*letters)
    post.redrive(*post.take())
    return _crash_in_the_middle(post, large)


def _stopped(post: Post) -> None:
    """An execution that the sweeper will find."""
    recipient, mailbox = post.forwarded()
    google = post.cloud.google
    google.faults.append(Fault(on="start", status=503, mailbox=mailbox, times=None))
    message_id = post.send(recipient, raw=EMAIL)
    post.until(lambda: post.cloud.executions(message_id) != [])
    (execution,) = post.cloud.executions(message_id)
    post.cloud.client("stepfunctions").stop_execution(executionArn=execution["executionArn"])
    post.cloud.wait_idle()


def _crash_in_the_middle(post: Post, large: bytes) -> tuple[str, list[dict[str, Any]]]:
    """(the session that an attempt left behind, the table's items while it was there)."""
    google = post.cloud.google
    recipient, mailbox = post.forwarded()
    google.faults.append(Fault(on="last_chunk", kind="hang", mailbox=mailbox))
    begun = google.requests["last_chunk"]
    message_id = post.send(recipient, raw=large)
    post.until(lambda: google.requests["last_chunk"] > begun)
    during = items(post)
    post.kill("gmail-forwarder")
    post.delivered(message_id)
    assert post.copies(mailbox) == 1
    (uploading,) = (item for item in during if item["SK"]["S"] == f"FORWARD#{mailbox}")
    session: str = uploading["upload"]["M"]["session"]["S"]
    return session, during


# -- what must hold --------------------------------------------------------------------------------


def test_no_secret_and_no_content_anywhere(aftermath: Aftermath) -> None:
    assert search(aftermath.places, aftermath.secrets) == []


def test_the_run_was_worth_searching(post: Post, aftermath: Aftermath) -> None:
    """Every kind of place, secret and error was really there."""
    kinds = {place.name.split()[0] for place in aftermath.places if place.text}
    assert kinds == {"log", "trace", "history", "queue", "record"}
    for function in post.cloud.runtime.functions:
        assert post.cloud.logs(function), function
    queues = {place.name.removeprefix("queue ") for place in aftermath.places}
    assert {
        f"ses-{name}-test"
        for name in ("email-input", "email-input-dlq", "gmail-forwarder-dlq", "bouncer-dlq")
    } <= queues
    for kind in (
        "access token", "refresh token", "client secret", "upload session",
        "private key", "signed assertion", *CONTENT,
    ):  # fmt: skip
        assert any(name.startswith(kind) for name in aftermath.secrets), kind
    told = " ".join(place.text for place in aftermath.places)
    for error in (
        "GmailTokenError", "GmailRejectedError", "GmailTemporaryError", "BounceRejectedError",
        "InvalidRoutingRuleError", "Runtime.ExitError", "invalid_grant", "unauthorized_client",
        "null-sender",
    ):  # fmt: skip
        assert error in told, error


def test_metrics_name_no_email(post: Post, aftermath: Aftermath) -> None:
    emf = [line for name in post.cloud.runtime.functions for line in post.cloud.logs(short(name))
           if "_aws" in line]  # fmt: skip
    assert {"Forwarded", "Bounced", "DeliveryDelay"} <= {
        metric["Name"] for line in emf for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
    }
    places = [Place("EMF", json.dumps(line)) for line in emf]
    assert search(places, aftermath.secrets) == []
    assert not any("@" in place.text for place in places)


def parts(segment: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield segment
    for inner in segment.get("subsegments", []):
        yield from parts(inner)


def test_traces_hold_neither_calls_nor_what_comes_and_goes(
    post: Post, aftermath: Aftermath
) -> None:
    """A patched library would trace each request, Gmail's sessions among them; a response or an
    error in full may hold anything."""
    found = [part for segment in post.cloud.traces.segments() for part in parts(segment)]
    assert {part["name"] for part in found} == {"## handler", "## message"}
    assert [part for part in found if "metadata" in part or "http" in part or "aws" in part] == []
    told = {name for part in found for name in part.get("annotations", {})}
    assert told == {"messageId", "ColdStart", "Service"}


def short(function: str) -> str:
    return function.removeprefix("ses-mail-").removesuffix("-test")


def test_session_of_a_crashed_attempt_is_in_its_record_only(
    post: Post, aftermath: Aftermath
) -> None:
    assert "upload_id=" in aftermath.stored
    upload_id = aftermath.stored.rpartition("upload_id=")[2]
    assert upload_id in aftermath.secrets.values()
    secret = {"stored session": upload_id}
    holders = [item for item in aftermath.during if upload_id in json.dumps(item)]
    assert [list(_attributes_with(item, upload_id)) for item in holders] == [["upload"]]
    # Delivered since then, the record has let it go.
    assert search(records(post), secret) == []
    assert not any("upload" in item for item in items(post) if item.get("result_id"))


def _attributes_with(item: Mapping[str, Any], text: str) -> Iterator[str]:
    return (name for name, value in item.items() if text in json.dumps(value))


@pytest.mark.parametrize("kind", ["log", "trace", "history", "queue", "record"])
def test_the_search_finds_what_is_planted(aftermath: Aftermath, kind: str) -> None:
    place = next(p for p in aftermath.places if p.name.startswith(kind) and p.text and not p.ses)
    middle = len(place.text) // 2
    for name, secret in aftermath.secrets.items():
        for form in forms(secret):
            planted = Place(place.name, place.text[:middle] + form + place.text[middle:])
            assert Found(name, place.name) in search([planted], {name: secret})


def test_the_search_would_find_a_real_leak(post: Post, aftermath: Aftermath) -> None:
    """Where the subject may be, it is found; and so is the token where it must be."""
    notifications = [p for p in aftermath.places if p.ses]
    assert notifications
    as_ours = [Place(p.name, p.text) for p in notifications]
    assert {found.secret for found in search(as_ours, aftermath.secrets)} == {"subject"}
    parameters = post.cloud.client("ssm").get_paginator("get_parameters_by_path")
    values = [
        Place(parameter["Name"], parameter["Value"])
        for page in parameters.paginate(Path="/ses-mail/test", Recursive=True, WithDecryption=True)
        for parameter in page["Parameters"]
    ]
    kinds = {" ".join(f.secret.split()[:2]) for f in search(values, aftermath.secrets)}
    assert kinds == {"refresh token", "client secret", "private key"}
