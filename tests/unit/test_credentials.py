"""Which parameter speaks for a mailbox, and what is wrong with those that do not."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from ses_mail import clients, credentials
from ses_mail.credentials import CredentialStore
from ses_mail.errors import GmailTokenError

from local.google import Google

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.clock import Clock

USER = {"type": "authorized_user", "refresh_token": "1//r", "client_id": "c", "client_secret": "s"}
ANNA = "anna@example.com"


@pytest.fixture
def store(aws: "Aws", time: "Clock") -> CredentialStore:
    return CredentialStore(clients.ssm(), aws.token_parameter, aws.mailbox_token_prefix)


@pytest.mark.parametrize(
    ("mailbox", "name"),
    [
        ("anna@example.com", "anna_40example.com"),
        ("a_b@x-y.example", "a_5fb_40x-y.example"),
        ("ünal@x.example", "_c3_bcnal_40x.example"),
        ("a/b@x.example", "a_2fb_40x.example"),
        ('"a b"@x.example', "_22a_20b_22_40x.example"),
    ],
)
def test_parameter_name(mailbox: str, name: str) -> None:
    assert credentials.parameter_name("/p/", mailbox) == f"/p/{name}"


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_parameter_names_are_legal_and_never_shared(one: str, other: str) -> None:
    names = [credentials.parameter_name("", mailbox) for mailbox in (one, other)]
    assert (names[0] == names[1]) is (one == other)
    for name in names:
        assert all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)


def test_own_parameter_wins_over_the_default(store: CredentialStore, aws: "Aws") -> None:
    default = aws.put_token(USER)
    own = aws.put_token({**USER, "refresh_token": "1//own"}, store.own_parameter(ANNA))
    assert store.for_mailbox(ANNA).parameter == own
    assert store.for_mailbox(ANNA).google.refresh_token == "1//own"
    assert store.for_mailbox("ben@example.com").parameter == default


def test_authorized_user(store: CredentialStore, aws: "Aws") -> None:
    aws.put_token({**USER, "token_uri": "https://evil.example/token", "token": "stale"})
    google = store.for_mailbox(ANNA).google
    assert (google.refresh_token, google.client_id, google.client_secret) == ("1//r", "c", "s")
    assert google.token_uri == "https://oauth2.googleapis.com/token"
    assert google.token is None


def test_service_account_acts_for_the_mailbox(
    store: CredentialStore, aws: "Aws", google: Google
) -> None:
    aws.put_token(google.add_service_account([ANNA]))
    made = store.for_mailbox(ANNA).google
    assert made._subject == ANNA
    assert list(made.scopes) == ["https://www.googleapis.com/auth/gmail.insert"]


def test_service_account_acts_for_nobody_else(
    store: CredentialStore, aws: "Aws", google: Google
) -> None:
    """Not even for the subject that its JSON names: the email is for this mailbox."""
    aws.put_token({**google.add_service_account([ANNA]), "subject": "boss@example.com"})
    assert store.for_mailbox(ANNA).google._subject == ANNA


def test_neither_parameter_exists(store: CredentialStore, aws: "Aws") -> None:
    with pytest.raises(GmailTokenError) as raised:
        store.for_mailbox(ANNA)
    assert raised.value.code == "missing_credentials"
    assert aws.token_parameter in str(raised.value)
    assert f"{aws.mailbox_token_prefix}anna_40example.com" in str(raised.value)


ACCOUNT = ("client_email", "private_key", "token_uri")
MALFORMED: list[tuple[Any, str]] = [
    ("{", "is not a JSON object"),
    ("1//r", "is not a JSON object"),
    ("[]", "is not a JSON object"),
    ("null", "is not a JSON object"),
    ({}, "lacks refresh_token, client_id, client_secret"),
    ({"refresh_token": "1//r", "client_id": "c"}, "lacks client_secret"),
    ({**USER, "refresh_token": None}, "lacks refresh_token"),
    ({**USER, "client_id": 7}, "lacks client_id"),
    *(
        ({**USER, name: empty}, f"lacks {name}")
        for name in USER
        if name != "type"
        for empty in ("", " ", None)
    ),
    ({"type": "service_account"}, "lacks client_email, private_key, token_uri"),
    *(
        (
            {"type": "service_account", **dict.fromkeys(ACCOUNT, "x"), name: ""},
            f"lacks {name}",
        )
        for name in ACCOUNT
    ),
    (
        {
            "type": "service_account",
            "private_key": "no PEM",
            "client_email": "x",
            "token_uri": "https://x",
        },
        "malformed service account",
    ),
]


@pytest.mark.parametrize(("value", "defect"), MALFORMED)
def test_malformed_parameters(store: CredentialStore, aws: "Aws", value: Any, defect: str) -> None:
    parameter = aws.put_token(value)
    with pytest.raises(GmailTokenError) as raised:
        store.for_mailbox(ANNA)
    assert raised.value.code == "malformed_credentials"
    assert f"parameter {parameter}" in str(raised.value)
    assert defect in str(raised.value)


def test_no_secret_in_messages_or_representations(
    store: CredentialStore, aws: "Aws", google: Google
) -> None:
    account = google.add_service_account([ANNA])
    broken = {**account, "private_key": account["private_key"].replace("A", "B")}
    aws.put_token(broken)
    with pytest.raises(GmailTokenError) as raised:
        store.for_mailbox(ANNA)
    assert "PRIVATE KEY" not in str(raised.value)
    aws.put_token({**USER, "refresh_token": "1//secret"})
    assert store.renewed(None, ANNA)
    assert "1//secret" not in repr(store.for_mailbox(ANNA))


def test_read_at_most_once_a_minute(store: CredentialStore, aws: "Aws", time: "Clock") -> None:
    aws.put_token(USER)
    counted = aws.wire.count("ssm")
    first = store.for_mailbox(ANNA)
    time.advance(59)
    assert store.for_mailbox(ANNA) is first
    assert counted == {"GetParameter": 2}  # its own, which is not there, and the default
    time.advance(1)
    assert store.for_mailbox(ANNA) is first, "unchanged: the access token is kept"
    assert counted == {"GetParameter": 4}
    aws.put_token({**USER, "refresh_token": "1//new"})
    assert store.for_mailbox(ANNA) is first
    time.advance(60)
    assert store.for_mailbox(ANNA).google.refresh_token == "1//new"


@pytest.mark.parametrize(
    ("change", "renewed"),
    [
        (lambda aws, own: None, False),
        (lambda aws, own: aws.put_token(USER), False),
        (lambda aws, own: aws.put_token({**USER, "refresh_token": "1//new"}), True),
        (lambda aws, own: aws.put_token(USER, own), True),  # another parameter speaks now
    ],
    ids=["nothing", "the same again", "a new token", "a parameter of its own"],
)
def test_renewed(
    store: CredentialStore, aws: "Aws", change: Callable[..., Any], renewed: bool
) -> None:
    aws.put_token(USER)
    used = store.for_mailbox(ANNA)
    change(aws, store.own_parameter(ANNA))
    assert store.renewed(used, ANNA) is renewed


def test_renewed_after_there_was_none(store: CredentialStore, aws: "Aws") -> None:
    with pytest.raises(GmailTokenError):
        store.for_mailbox(ANNA)
    assert not store.renewed(None, ANNA)
    aws.put_token(USER)
    assert store.renewed(None, ANNA)
    assert store.for_mailbox(ANNA).google.refresh_token == "1//r"


@pytest.mark.parametrize("code", ["AccessDeniedException", "ThrottlingException"])
def test_other_errors_of_the_store_are_no_missing_parameter(
    store: CredentialStore, aws: "Aws", code: str
) -> None:
    aws.wire.answer("ssm.GetParameter", 400, code)
    with pytest.raises(ClientError, match=code):
        store.for_mailbox(ANNA)


def test_a_service_account_acts_for_the_mailbox_alone(
    store: CredentialStore, aws: "Aws", google: Google
) -> None:
    """Whatever `subject` its JSON names: or a rule's mail would be filed in another's mailbox."""
    account = google.add_service_account([ANNA, "ben@example.com"])
    aws.put_token({**account, "subject": "ben@example.com"})
    assert store.for_mailbox(ANNA).google._subject == ANNA
