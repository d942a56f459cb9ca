"""The Google credentials of a mailbox, from SSM Parameter Store."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from ses_mail import clock
from ses_mail.errors import GmailTokenError

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient

# Enough to import, and it can neither read nor search the mailbox.
SCOPES = ("https://www.googleapis.com/auth/gmail.insert",)
_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 (an address, no secret)
_CACHE_SECONDS = 60.0
_USER_FIELDS = ("refresh_token", "client_id", "client_secret")
_ACCOUNT_FIELDS = ("client_email", "private_key", "token_uri")


@dataclass(frozen=True)
class MailboxCredentials:
    """Credentials that can act for one mailbox, and the parameter that they came from."""

    mailbox: str
    parameter: str
    google: Any = field(repr=False)
    value: str = field(repr=False)


@dataclass(frozen=True)
class StoredToken:
    """A parameter with credentials as it stands; a version number starts again when the parameter
    is deleted and created, so modified_at (RFC 3339) belongs to it."""

    parameter: str
    mailbox: str  # empty: the default parameter, which may serve many
    value: str = field(repr=False)
    version: int
    modified_at: str
    error: str = ""  # why it could not be read; the value is empty then


def parameter_name(prefix: str, mailbox: str) -> str:
    """The mailbox's own parameter: SSM allows `a-zA-Z0-9_.-/`, the rest is `_` + two hex digits.

    >>> parameter_name("/ses-mail/test/gmail-tokens/", "anna@example.com")
    '/ses-mail/test/gmail-tokens/anna_40example.com'
    """
    return prefix + re.sub(
        rb"[^a-zA-Z0-9.-]", lambda match: b"_%02x" % match[0][0], mailbox.encode()
    ).decode("ascii")


def mailbox_of(prefix: str, parameter: str) -> str:
    """What parameter_name made the parameter's name of."""
    return re.sub(
        rb"_([0-9a-f]{2})",
        lambda match: bytes.fromhex(match[1].decode()),
        parameter.removeprefix(prefix).encode(),
    ).decode(errors="replace")


def stored_tokens(ssm: "SSMClient", default_parameter: str, prefix: str) -> list[StoredToken]:
    """The default parameter, if there is one, and those of all mailboxes.

    Each is decrypted by itself: one that cannot be read must not hide the others.
    """
    names = [default_parameter]
    pages = ssm.get_paginator("get_parameters_by_path")
    # Without the slash at its end, or IAM would ask for a right on that very name.
    for page in pages.paginate(Path=prefix.rstrip("/"), WithDecryption=False):
        names += [parameter["Name"] for parameter in page["Parameters"]]
    found = []
    for name in names:
        mailbox = "" if name == default_parameter else mailbox_of(prefix, name)
        with suppress(ssm.exceptions.ParameterNotFound):
            found.append(_stored(ssm, name, mailbox))
    return found


def _stored(ssm: "SSMClient", name: str, mailbox: str) -> StoredToken:
    try:
        parameter = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]
    except ssm.exceptions.ParameterNotFound:
        raise
    except ClientError as error:
        return StoredToken(name, mailbox, "", 0, "", error.response["Error"]["Code"])
    modified = clock.iso(parameter["LastModifiedDate"].timestamp())
    return StoredToken(name, mailbox, parameter["Value"], parameter["Version"], modified)


class CredentialStore:
    """Reads parameters, each at most once in 60 s; keeps access tokens as long as they live."""

    def __init__(self, ssm: "SSMClient", default_parameter: str, prefix: str) -> None:
        self._ssm = ssm
        self._default = default_parameter
        self._prefix = prefix
        self._values: dict[str, tuple[float, str | None]] = {}
        self._made: dict[str, MailboxCredentials] = {}

    def for_mailbox(self, mailbox: str) -> MailboxCredentials:
        """The mailbox's own parameter, or else the default one.

        Raises GmailTokenError that names the parameter to create or to fix.
        """
        own = parameter_name(self._prefix, mailbox)
        for parameter in (own, self._default):
            value = self._value(parameter)
            if value is None:
                continue
            made = self._made.get(mailbox)
            if made is None or (made.parameter, made.value) != (parameter, value):
                made = MailboxCredentials(
                    mailbox, parameter, google_credentials(parameter, value, mailbox), value
                )
                self._made[mailbox] = made
            return made
        raise GmailTokenError(
            f"no credentials for {mailbox}: neither parameter {own} nor {self._default} exists",
            "missing_credentials",
        )

    def renewed(self, used: MailboxCredentials | None, mailbox: str) -> bool:
        """Whether the parameters hold something else than what was used, read afresh."""
        self._values.clear()
        own = parameter_name(self._prefix, mailbox)
        for parameter in (own, self._default):
            value = self._value(parameter)
            if value is not None:
                return used is None or (used.parameter, used.value) != (parameter, value)
        return False

    def own_parameter(self, mailbox: str) -> str:
        """Where credentials for just this mailbox belong."""
        return parameter_name(self._prefix, mailbox)

    def _value(self, parameter: str) -> str | None:
        read_at, value = self._values.get(parameter, (float("-inf"), None))
        if clock.now() - read_at >= _CACHE_SECONDS:
            try:
                answer = self._ssm.get_parameter(Name=parameter, WithDecryption=True)
                value = answer["Parameter"]["Value"]
            except self._ssm.exceptions.ParameterNotFound:
                value = None
            self._values[parameter] = (clock.now(), value)
        return value


def google_credentials(parameter: str, value: str, mailbox: str) -> Any:
    """The Google library's credentials out of a parameter's value.

    Without a mailbox a service account acts for the `subject` that its JSON names, or for itself.
    Raises GmailTokenError.
    """
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise GmailTokenError(
            f"parameter {parameter} is not a JSON object", "malformed_credentials"
        )
    is_account = fields.get("type") == "service_account"
    wanted = _ACCOUNT_FIELDS if is_account else _USER_FIELDS
    missing = [name for name in wanted if not _is_text(fields.get(name))]
    if missing:
        raise GmailTokenError(
            f"parameter {parameter} lacks {', '.join(missing)}", "malformed_credentials"
        )
    if is_account:
        try:
            return service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                fields, scopes=SCOPES, subject=mailbox or fields.get("subject")
            )
        except (ValueError, TypeError, KeyError, GoogleAuthError) as error:
            raise GmailTokenError(
                f"parameter {parameter}: malformed service account: {type(error).__name__}",
                "malformed_credentials",
            ) from None
    return user_credentials.Credentials(  # type: ignore[no-untyped-call]
        None,
        refresh_token=fields["refresh_token"],
        token_uri=_TOKEN_URI,
        client_id=fields["client_id"],
        client_secret=fields["client_secret"],
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
