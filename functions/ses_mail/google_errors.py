"""What Google's libraries raise, as the errors of errors.py: told by type and structured field,
never by text."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import httplib2
from google.auth.exceptions import RefreshError, TransportError

from ses_mail.errors import GmailTemporaryError, GmailTokenError

_DEAD_TOKEN = ("invalid_grant", "invalid_client", "unauthorized_client", "invalid_scope")


@contextmanager
def translated(token: str) -> Iterator[None]:
    """Around calls of Google; `token` says in a message whose it is.

    Raises GmailTokenError for a token that only a person can mend, and GmailTemporaryError.
    """
    try:
        yield
    except RefreshError as error:
        code = _refresh_code(error)
        if code in _DEAD_TOKEN:
            raise GmailTokenError(
                f"Google refuses to refresh the token of {token}: {code}", code
            ) from None
        raise GmailTemporaryError("Google's token endpoint is out of order", code) from None
    except TypeError:
        # google-auth indexes a token answer of status 200 although it is no JSON object.
        raise GmailTemporaryError("Google's token endpoint sent no JSON") from None
    except (TransportError, httplib2.HttpLib2Error, http.client.HTTPException, OSError) as error:
        raise GmailTemporaryError(
            f"no answer from Google: {type(error).__name__}", type(error).__name__
        ) from None


def _refresh_code(error: RefreshError) -> str:
    # args: (text, the endpoint's JSON) if it sent JSON at all; `.retryable` is not to be trusted.
    details = error.args[1] if len(error.args) > 1 else None
    return str(details.get("error", "")) if isinstance(details, dict) else ""
