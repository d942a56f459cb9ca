"""What Google says of every token, and when a token counts as good again."""

import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import certifi
import httplib2
import pytest
from botocore.exceptions import ClientError
from ses_mail import clients, clock, monitor_tokens
from ses_mail.credentials import StoredToken, mailbox_of, parameter_name, stored_tokens
from ses_mail.monitor_tokens import (
    INVALID,
    UNKNOWN,
    VALID,
    Check,
    Redrive,
    TokenMonitor,
    ask_google,
    is_newly_good,
    recorded,
)

from local.google import Fault, Google

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

ANNA, BEN = "anna@example.com", "ben@example.com"
HOUR = 3600


def token(value: Any, mailbox: str = ANNA) -> StoredToken:
    text = value if isinstance(value, str) else json.dumps(value)
    return StoredToken("/p/token", mailbox, text, 1, "2026-11-24T10:00:00Z")


# -- Google's answers ------------------------------------------------------------------------------


def user(google: Google, **change: str) -> StoredToken:
    return token(google.add_mailbox(ANNA) | change)


def revoked(google: Google) -> StoredToken:
    made = user(google)
    google.revoke(ANNA)
    return made


def account(google: Google, mailbox: str, **change: str) -> StoredToken:
    return token(google.add_service_account([ANNA]) | change, mailbox)


ANSWERS: list[tuple[str, Callable[[Google], StoredToken], str, str]] = [
    ("a good token", user, VALID, ""),
    ("revoked", revoked, INVALID, "invalid_grant"),
    ("unknown to Google", lambda g: user(g, refresh_token="1//x"), INVALID, "invalid_grant"),
    ("another client", lambda g: user(g, client_id="x"), INVALID, "invalid_client"),
    ("no JSON", lambda _: token("1//secret"), INVALID, "malformed_credentials"),
    ("half a token", lambda _: token({"client_id": "x"}), INVALID, "malformed_credentials"),
    ("service account", lambda g: account(g, ANNA), VALID, ""),
    # Of a mailbox that nobody delegated to it.
    ("wrong mailbox", lambda g: account(g, BEN), INVALID, "unauthorized_client"),
    # As the default parameter it has no mailbox, and signs for itself …
    ("service account as default", lambda g: account(g, ""), VALID, ""),
    ("service account gone", lambda g: account(g, "", client_email="x"), INVALID, "invalid_grant"),
    # … or for the mailbox that its JSON names.
    ("subject in the JSON", lambda g: account(g, "", subject=ANNA), VALID, ""),
    ("wrong subject", lambda g: account(g, "", subject=BEN), INVALID, "unauthorized_client"),
]


@pytest.mark.parametrize(
    ("make", "result", "error"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS]
)
def test_what_google_says(
    google: Google, make: Callable[[Google], StoredToken], result: str, error: str
) -> None:
    assert ask_google(make(google)) == (result, error)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("token", 500, "internal_failure", times=None), "internal_failure"),
        (Fault("token", 503, html=True, times=None), "GmailTemporaryError"),
        (Fault("token", 429, "rate_limit_exceeded", times=None), "rate_limit_exceeded"),
        (Fault("token", 200, body=b"[]", times=None), "GmailTemporaryError"),
        (Fault("token", kind="reset", times=None), ""),
        (Fault("token", kind="hang", times=None), "TimeoutError"),
    ],
    ids=["500", "503 in HTML", "429", "no JSON object", "reset", "hang"],
)
def test_trouble_on_the_way_says_nothing_about_the_token(
    google: Google, monkeypatch: pytest.MonkeyPatch, fault: Fault, error: str
) -> None:
    monkeypatch.setattr(monitor_tokens, "_TIMEOUT", 0.3)
    made = user(google)
    google.faults.append(fault)
    result, code = ask_google(made)
    assert (result, error or code) == (UNKNOWN, code)
    assert fault.fired
    google.faults.clear()
    assert ask_google(made) == (VALID, "")


def test_a_5xx_that_passes_is_no_trouble(google: Google) -> None:
    google.faults.append(Fault("token", 500, "internal_failure", times=2))
    assert ask_google(user(google)) == (VALID, "")


def test_a_wrong_certificate_says_nothing_about_the_token(
    google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httplib2, "CA_CERTS", certifi.where())
    assert ask_google(user(google)) == (UNKNOWN, ssl.SSLCertVerificationError.__name__)


def test_what_nobody_thought_of_says_nothing_about_the_token(
    google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = user(google)
    monkeypatch.setattr(
        monitor_tokens, "google_auth_httplib2", SimpleNamespace(Request=lambda http: 1 / 0)
    )
    assert ask_google(made) == (UNKNOWN, "ZeroDivisionError")


# -- which tokens there are ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mailbox", ["anna@example.com", "a_b@x-y.example", "ünal@x.example", '"a b"/c@x.example', "_40"]
)
def test_a_mailbox_is_found_in_its_parameters_name(mailbox: str) -> None:
    assert mailbox_of("/p/", parameter_name("/p/", mailbox)) == mailbox


def test_a_name_that_is_no_mailbox_is_read_all_the_same() -> None:
    assert mailbox_of("/p/", "/p/anna_ff") == "anna\ufffd"


def test_every_parameter_is_read_page_by_page(aws: "Aws") -> None:
    mailboxes = [f"m{number:02}@example.com" for number in range(23)]
    for mailbox in mailboxes:
        aws.put_token(f"of {mailbox}", parameter_name(aws.mailbox_token_prefix, mailbox))
    aws.put_token("of a mailbox with a longer prefix", f"{aws.mailbox_token_prefix[:-1]}x/a")
    aws.put_token("first")
    aws.put_token("second")
    counted = aws.wire.count("ssm")
    default, *others = stored_tokens(clients.ssm(), aws.token_parameter, aws.mailbox_token_prefix)
    assert counted == {"GetParameter": 1 + len(mailboxes), "GetParametersByPath": 3}
    assert (default.parameter, default.mailbox) == (aws.token_parameter, "")
    assert (default.value, default.version) == ("second", 2)
    assert clock.parse(default.modified_at)
    assert sorted(t.mailbox for t in others) == mailboxes
    assert {t.value for t in others} == {f"of {mailbox}" for mailbox in mailboxes}
    assert "second" not in repr(default)


# -- when a token is good again --------------------------------------------------------------------

NOW = 1795514405.0
GOOD = Check("/p", VALID, "", 3, "2026-11-24T09:00:00Z")
BAD = replace(GOOD, result=INVALID, error="invalid_grant")
RENEWED = replace(GOOD, version=4, modified_at="2026-11-24T10:00:00Z")
RECREATED = replace(GOOD, modified_at="2026-11-24T10:00:00Z")  # the version counts anew


@pytest.mark.parametrize(
    ("before", "check", "hours", "newly_good"),
    [
        ([], GOOD, 0, True),
        ([], BAD, 0, False),
        ([GOOD], GOOD, 2, True),
        ([GOOD], GOOD, 3, False),
        ([GOOD, GOOD, GOOD], GOOD, 1, False),  # since 4 h, whatever was checked meanwhile
        ([GOOD], BAD, 1, False),
        ([BAD], GOOD, 5, True),
        ([BAD], BAD, 1, False),
        ([GOOD], RENEWED, 5, True),
        ([GOOD], RECREATED, 5, True),
        ([BAD], RENEWED, 5, True),
        ([GOOD], replace(RENEWED, result=INVALID), 1, False),
        ([GOOD, BAD], GOOD, 1, True),
        ([BAD, GOOD], GOOD, 2, True),
        ([BAD, GOOD, GOOD], GOOD, 1, True),
        ([BAD, GOOD, GOOD, GOOD], GOOD, 1, False),
    ],
)
def test_newly_good(before: list[Check], check: Check, hours: int, newly_good: bool) -> None:
    """Checks an hour apart, the last one `hours` after them."""
    item: dict[str, Any] = {}
    now = NOW
    for earlier in before:
        item = recorded(item, earlier, now)
        now += HOUR
    now += (hours - 1) * HOUR if before else 0
    assert is_newly_good(recorded(item, check, now), now) is newly_good


def test_the_whole_record() -> None:
    item = recorded({}, BAD, NOW)
    assert item == {
        "PK": "TOKEN#/p",
        "SK": "CHECK",
        "entity_type": "TOKEN_CHECK",
        "version": 3,
        "modified_at": "2026-11-24T09:00:00Z",
        "valid": False,
        "error": "invalid_grant",
        "checked_at": "2026-11-24T10:00:05Z",
        "changed_at": "2026-11-24T10:00:05Z",
    }
    later = recorded(item, BAD, NOW + HOUR)
    assert (later["checked_at"], later["changed_at"]) == (
        "2026-11-24T11:00:05Z",
        "2026-11-24T10:00:05Z",
    )


@pytest.fixture
def monitor(aws: "Aws", time: "Clock") -> TokenMonitor:
    return TokenMonitor(
        clients.ssm(),
        clients.dynamodb(),
        aws.deliveries_table,
        aws.token_parameter,
        aws.mailbox_token_prefix,
    )


def test_records_are_kept_from_check_to_check(
    monitor: TokenMonitor, aws: "Aws", time: "Clock"
) -> None:
    other = replace(BAD, parameter="/other")
    assert monitor.became_good([GOOD, other]) == ["/p"]
    time.advance(2 * HOUR)
    assert monitor.became_good([GOOD, other]) == ["/p"]
    time.advance(HOUR)
    assert monitor.became_good([GOOD, other]) == []
    assert monitor.became_good([GOOD, replace(GOOD, parameter="/other")]) == ["/other"]
    assert set(aws.token_checks()) == {"/p", "/other"}


def test_what_is_unknown_leaves_the_record_as_it_was(
    monitor: TokenMonitor, aws: "Aws", time: "Clock"
) -> None:
    monitor.became_good([BAD])
    before = aws.token_checks()
    time.advance(HOUR)
    assert monitor.became_good([replace(RENEWED, result=UNKNOWN, error="TimeoutError")]) == []
    assert aws.token_checks() == before
    assert monitor.became_good([RENEWED]) == ["/p"]


def test_out_of_time_the_rest_is_unknown(monitor: TokenMonitor, aws: "Aws", google: Google) -> None:
    aws.put_token(google.add_mailbox(ANNA))
    aws.put_token(google.add_mailbox(BEN), parameter_name(aws.mailbox_token_prefix, BEN))
    answers = iter([False, True])
    checks = list(monitor.checks(lambda: next(answers)))
    assert [(c.result, c.error) for c in checks] == [(VALID, ""), (UNKNOWN, "out_of_time")]


def test_none_at_all(monitor: TokenMonitor, aws: "Aws") -> None:
    missing = Check(aws.token_parameter, INVALID, "missing_credentials")
    assert list(monitor.checks(lambda: False)) == [missing]


def test_mailboxes_alone_will_do(monitor: TokenMonitor, aws: "Aws", google: Google) -> None:
    own = aws.put_token(google.add_mailbox(ANNA), parameter_name(aws.mailbox_token_prefix, ANNA))
    assert [(c.parameter, c.result) for c in monitor.checks(lambda: False)] == [(own, VALID)]


def test_a_store_that_refuses_to_list_says_nothing(monitor: TokenMonitor, aws: "Aws") -> None:
    aws.wire.answer("ssm.GetParametersByPath", 400, "AccessDeniedException")
    with pytest.raises(ClientError, match="AccessDenied"):
        list(monitor.checks(lambda: False))


def test_a_parameter_that_cannot_be_read_does_not_hide_the_others(
    monitor: TokenMonitor, aws: "Aws", google: Google
) -> None:
    """Put under a key that the monitor may not use, say."""
    aws.put_token(google.add_mailbox(BEN))
    own = aws.put_token(google.add_mailbox(ANNA), parameter_name(aws.mailbox_token_prefix, ANNA))
    aws.wire.answer("ssm.GetParameter", 400, "AccessDeniedException", times=1)
    assert [(c.parameter, c.result, c.error) for c in monitor.checks(lambda: False)] == [
        (aws.token_parameter, UNKNOWN, "AccessDeniedException"),
        (own, VALID, ""),
    ]


# -- the redrive -----------------------------------------------------------------------------------


@pytest.fixture
def redrive(aws: "Aws") -> Redrive:
    return Redrive(clients.ssm(), clients.sqs(), "document", aws.gmail_forwarder_dlq_url, "input")


def test_nothing_is_started_for_an_empty_queue(redrive: Redrive, aws: "Aws") -> None:
    counted = aws.wire.count("ssm")
    assert redrive.start() == ""
    assert counted == {}


def test_what_is_started(redrive: Redrive, aws: "Aws") -> None:
    clients.sqs().send_message(QueueUrl=aws.gmail_forwarder_dlq_url, MessageBody="x")
    asked = []

    def start(request: Any) -> tuple[int, bytes]:
        asked.append(json.loads(request.body))
        return 200, b'{"AutomationExecutionId": "4105a4fc"}'

    aws.wire.reply("ssm.StartAutomationExecution", start)
    assert redrive.start() == "4105a4fc"
    assert asked == [
        {
            "DocumentName": "document",
            "Parameters": {
                "DLQUrl": [aws.gmail_forwarder_dlq_url],
                "SourceQueueUrl": ["input"],
                "Error": ["GmailTokenError"],
            },
        }
    ]
