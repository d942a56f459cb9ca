"""What is kept of a file with Google credentials, and what is said of one that is none."""

import json
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from cli.commands.token import token_fields
from cli.errors import InvalidInputError

USER = {"client_id": "c", "client_secret": "s", "refresh_token": "1//r"}
KEPT = {"type": "authorized_user", **USER}


@pytest.mark.parametrize(
    "given",
    [
        USER,
        KEPT,
        {**KEPT, "token": "ya29.x", "token_uri": "https://evil.example", "scopes": ["x"]},
        json.loads(Credentials("ya29.x", **USER, token_uri="https://x", account="").to_json()),
    ],
    ids=["bare", "authorized_user", "with more in it", "to_json()"],
)
def test_of_a_user_three_fields_are_kept(given: dict[str, Any]) -> None:
    assert token_fields(json.dumps(given)) == KEPT


def test_of_a_service_account_what_signs_is_kept() -> None:
    key = {
        "type": "service_account",
        "client_email": "e",
        "private_key": "k",
        "private_key_id": "i",
        "token_uri": "u",
    }
    given = {
        **key,
        "project_id": "p",
        "client_id": "7",
        "auth_uri": "a",
        "subject": "you@x.example",
    }
    assert token_fields(json.dumps(given)) == {**key, "subject": "you@x.example"}


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("", "not JSON"),
        ("1//secret", "not JSON"),
        ('{"refresh_token": "1//secret"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["1//secret"]', "not a JSON object"),
        ('{"installed": {"client_secret": "1//secret"}}', "this is the OAuth client"),
        ('{"web": {"client_secret": "1//secret"}}', "this is the OAuth client"),
        ('{"type": "external_account", "refresh_token": "1//secret"}', "only credentials of type"),
        ('{"type": {"1//secret": 1}}', "only credentials of type"),
    ],
)
def test_what_is_no_token(text: str, defect: str) -> None:
    with pytest.raises(InvalidInputError, match=defect) as raised:
        token_fields(text)
    assert "secret" not in str(raised.value)
