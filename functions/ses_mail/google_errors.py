"""What Google's libraries raise, as the errors of errors.py: told by type and structured field,
never by text."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import httplib2
from google.auth.exceptions import ReauthFailError, RefreshError, TransportError

from ses_mail.errors import GmailTemporaryError, GmailTokenError

# The errors of the token endpoint that say *later*. Any other that it names is for a person:
# invalid_grant, deleted_client, access_denied, or one that is yet to be invented.
_LATER = (
    *("internal_failure", "server_error", "temporarily_unavailable", "backend_error"),
    *("rate_limit_exceeded", "quota_exceeded", "slow_down"),
)
# google-auth 2.63 has no class and no code for it (oauth2/reauth.py, refresh_grant).
_REAUTHENTICATE = "Reauthentication is needed."


@contextmanager
def translated(token: str) -> Iterator[None]:
    """Around calls of Google; `token` says in a message whose it is.

    Raises GmailTokenError for a token that only a person can fix, and GmailTemporaryError.
    """
    try:
        yield
    except RefreshError as error:
        code = _refresh_code(error)
        if code and code not in _LATER and not error.retryable:
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
    """What the endpoint names, `invalid_rapt` for a reauthentication; empty if it names nothing.

    args: (text, the endpoint's JSON) if it sent JSON at all. `.retryable` is True for the statuses
    500, 503, 408 and 429, and says nothing where it is False.
    """
    if isinstance(error, ReauthFailError) or str(error.args[0]).startswith(_REAUTHENTICATE):
        return "invalid_rapt"
    details = error.args[1] if len(error.args) > 1 else None
    code = details.get("error", "") if isinstance(details, dict) else ""
    return code if isinstance(code, str) else ""
