"""`sesmail token`: the Google credentials that mail is filed with."""

from __future__ import annotations

import contextlib
import json
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import requests
import typer
from botocore.exceptions import ClientError
from google_auth_oauthlib.flow import InstalledAppFlow, WSGITimeoutError
from oauthlib.oauth2 import OAuth2Error
from ses_mail import addresses, clock
from ses_mail.credentials import (
    SCOPES,
    StoredToken,
    google_credentials,
    parameter_name,
    stored_tokens,
)
from ses_mail.errors import GmailTokenError
from ses_mail.monitor_tokens import INVALID, UNKNOWN, VALID, ask_google

from .. import refusals
from ..errors import CheckFailedError, CommandError, InvalidInputError
from ..hints import hint
from ..output import progress, say, show_fields, show_json, show_table, when
from ..session import Session

# What ses_mail.credentials needs of each kind; the rest of the file (access tokens, project names)
# is nobody's business there.
_USER = ("client_id", "client_secret", "refresh_token")
_ACCOUNT = ("client_email", "private_key", "private_key_id", "token_uri", "subject")
# Of a standard parameter.
_MAXIMUM = 4096
# Seconds in which the person has to find the browser, the account and the button.
_PATIENCE = 600

tokens = typer.Typer(no_args_is_help=True, help="Gmail tokens: put and check them.")

Mailbox = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Its own token, not the default one.")
]


@tokens.command("set")
def set_token(
    context: typer.Context,
    mailbox: Mailbox = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="JSON of an authorized user, or a service account's key; - is standard input.",
            show_default=False,
        ),
    ] = None,
    consent: Annotated[
        bool, typer.Option("--consent", help="Ask for a new token in the browser.")
    ] = False,
    client: Annotated[
        Path | None,
        typer.Option(help="client_secret.json, for the consent.", show_default=False),
    ] = None,
    browser: Annotated[
        bool, typer.Option(help="Open the browser, or only print the address.")
    ] = True,
    port: Annotated[int, typer.Option(help="Port that the browser is sent back to; 0 is any.")] = 0,
    check: Annotated[bool, typer.Option(help="Ask Google whether it takes the token.")] = True,
) -> None:
    """Put a Gmail token, which works at once; mail that was parked for it is redriven by itself.

    Google is asked first: a token that it refuses changes nothing. On a machine without a browser
    use --no-browser --port 8085, and ssh -L 8085:localhost:8085 from where the browser is.

    Example: sesmail token set --mailbox anna@example.com --file token.json
    """
    session: Session = context.obj
    if (file is None) == (not consent) or (client is None) == consent:
        raise InvalidInputError("give either --file, or --consent with --client")
    address = _mailbox(mailbox)
    parameter = _parameter(session, address)
    _refuse_elsewhere(session)
    text = _consented(_read(client), address, browser, port) if consent else _read(file)
    value = json.dumps(token_fields(text))
    try:
        google_credentials(parameter, value, address)
    except GmailTokenError as error:
        raise InvalidInputError(f"{error}; nothing was changed") from None
    if len(value.encode()) > _MAXIMUM:
        raise InvalidInputError(
            f"{len(value.encode())} bytes are too many for {parameter}, which holds {_MAXIMUM}"
        )
    if check:
        _refuse_bad(StoredToken(parameter, address, value, 0, clock.iso()))
    answer = {
        "parameter": parameter,
        "mailbox": address or None,
        "type": json.loads(value)["type"],
        "checked": check,
        "version": put_parameter(session, parameter, value),
    }
    show_json(answer) if session.as_json else show_fields(answer)


@tokens.command("check")
def check_tokens(context: typer.Context, mailbox: Mailbox = None) -> None:
    """Ask Google whether it still takes the tokens: all, or the one that serves a mailbox.

    Changes nothing. Ends with 1 if one is invalid, with 4 if Google gave no answer. That a token is
    valid does not say whose mailbox it may file mail in.

    Example: sesmail token check
    """
    session: Session = context.obj
    address = _mailbox(mailbox)
    found = stored_tokens(
        session.ssm, session.default_token_parameter, session.mailbox_token_prefix
    )
    if address:
        found = _serving(session, found, address)
    rows = []
    with progress(session.as_json) as bar:
        for token in bar.track(found, description="Asking Google"):
            result, error = ask_google(token)
            rows.append(_row(token.parameter, token.mailbox, result, error, token))
    if not rows:
        session.look_around()
        missing = _parameter(session, address)
        rows.append(_row(missing, address, INVALID, "missing_credentials", None))
    if session.as_json:
        show_json(*rows)
    else:
        shown = [{**row, "last_modified": when(row["last_modified"])} for row in rows]
        show_table(list(shown[0]), [list(row.values()) for row in shown])
    results = {row["result"] for row in rows}
    if INVALID in results:
        raise typer.Exit(CheckFailedError.exit_code)
    if results != {VALID}:
        raise typer.Exit(CommandError.exit_code)


def token_fields(text: str) -> dict[str, Any]:
    """What is kept of a file with credentials: of google-auth's authorized_user file, of what its
    `to_json()` gives, or of a service account's key.

    Raises InvalidInputError, which quotes nothing of the file.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError("the token is not JSON; nothing was changed") from None
    if not isinstance(fields, dict):
        raise InvalidInputError("the token is not a JSON object; nothing was changed")
    if "installed" in fields or "web" in fields:
        raise InvalidInputError(
            "this is the OAuth client, not a token yet: "
            f"{hint('token', 'set', '--consent', '--client', 'FILE')}"
        )
    kind = fields.get("type", "authorized_user")
    if kind not in ("authorized_user", "service_account"):
        raise InvalidInputError(
            "only credentials of type authorized_user and service_account can file mail"
        )
    kept = _USER if kind == "authorized_user" else _ACCOUNT
    return {"type": kind} | {name: fields[name] for name in kept if name in fields}


def _refuse_elsewhere(session: Session) -> None:
    """Raise ClientError if no environment is deployed where the parameter would be put.

    Who may put a token need not be allowed to look at a pipe.
    """
    try:
        session.look_around()
    except ClientError as error:
        if not refusals.is_denied(error):
            raise


def _mailbox(address: str | None) -> str:
    """The mailbox of an option, or nothing for the default token."""
    if address is None:
        return ""
    if not addresses.is_address(address):
        raise InvalidInputError(f"{address!r} is not an address")
    return addresses.mailbox(address)


def _parameter(session: Session, mailbox: str) -> str:
    if not mailbox:
        return session.default_token_parameter
    return parameter_name(session.mailbox_token_prefix, mailbox)


def _read(file: Path | None) -> str:
    try:
        if file is None or str(file) == "-":
            return sys.stdin.read()
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # A decoding error would quote the file.
        raise InvalidInputError(f"{file} cannot be read: {type(error).__name__}") from None


def _consented(client: str, mailbox: str, browser: bool, port: int) -> str:
    """JSON of the token that a person agrees to give in the browser."""
    try:
        flow = InstalledAppFlow.from_client_config(json.loads(client), SCOPES)
    except (ValueError, KeyError, TypeError):
        raise InvalidInputError(
            "this is not an OAuth client: download the JSON of an OAuth client of type Desktop app"
        ) from None
    if mailbox:
        say(f"Choose the account {mailbox} in the browser.")
    hint = {"login_hint": mailbox} if mailbox else {}
    try:
        # The library prints the address, which is not part of the answer.
        with contextlib.redirect_stdout(sys.stderr):
            given = flow.run_local_server(
                port=port,
                open_browser=browser,
                timeout_seconds=_PATIENCE,
                # Without both, Google gives no refresh token to who had one before.
                access_type="offline",
                prompt="consent",
                **hint,
            )
    except WSGITimeoutError:
        raise CommandError(f"no consent came within {_PATIENCE // 60} minutes") from None
    except OAuth2Error as error:
        raise CheckFailedError(f"Google gave no token: {error.error}") from None
    except Warning:
        raise CheckFailedError("the consent lacks the right to file mail: tick its box") from None
    except requests.RequestException as error:
        raise CommandError(f"no answer from Google: {type(error).__name__}") from None
    except webbrowser.Error:
        raise CommandError("no browser can be opened here: use --no-browser") from None
    except OSError as error:
        raise CommandError(f"port {port} cannot be had: {error.strerror}") from None
    return str(given.to_json())


def _refuse_bad(token: StoredToken) -> None:
    result, error = ask_google(token)
    if result == INVALID:
        raise CheckFailedError(
            f"Google refuses this token: {error}. Nothing was changed; make a new one: "
            f"{hint('token', 'set', '--consent', '--client', 'FILE')}"
        )
    if result == UNKNOWN:
        raise CommandError(
            f"Google gave no answer: {error}. Nothing was changed; --no-check puts it unasked"
        )


def put_parameter(session: Session, parameter: str, value: str) -> int:
    """Write credentials; returns the new version. Raises CommandError, which quotes nothing."""
    try:
        answer = session.ssm.put_parameter(
            Name=parameter, Value=value, Type="SecureString", Overwrite=True
        )
    except ClientError as error:
        # The message of a refused parameter may quote its value.
        code = error.response["Error"]["Code"]
        raise CommandError(f"{parameter} could not be written: {code}") from None
    return answer["Version"]


def _serving(session: Session, found: list[StoredToken], mailbox: str) -> list[StoredToken]:
    by_name = {token.parameter: token for token in found}
    for parameter in (_parameter(session, mailbox), session.default_token_parameter):
        if parameter in by_name:
            # A service account signs for this mailbox, whichever parameter it is in.
            return [replace(by_name[parameter], mailbox=mailbox)]
    return []


def _row(
    parameter: str, mailbox: str, result: str, error: str, token: StoredToken | None
) -> dict[str, Any]:
    return {
        "parameter": parameter,
        "mailbox": mailbox or None,
        "result": result,
        "error": error or None,
        "last_modified": token.modified_at if token else None,
        "version": token.version if token else None,
    }
