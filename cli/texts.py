"""Headers of stored emails as text for people. They are shown to the operator, never logged."""

from __future__ import annotations

from contextlib import suppress
from email.errors import HeaderParseError
from email.header import decode_header

from ses_mail import headers
from ses_mail.errors import printable
from ses_mail.headers import Headers


def shown(fields: Headers, *names: str) -> list[str]:
    """All values of some headers, decoded."""
    return [decoded(value) for name in names for value in headers.values(fields, name)]


def decoded(value: str) -> str:
    """A header's value (Latin-1, see ses_mail.headers) for people: RFC 2047 and raw UTF-8 decoded,
    never a control character."""
    # Other charsets than UTF-8 are not named where bytes stand raw.
    with suppress(UnicodeDecodeError):
        value = value.encode("latin-1").decode("utf-8")
    try:
        pieces = decode_header(value)
    except (HeaderParseError, ValueError):
        pieces = [(value, None)]
    return printable("".join(_piece(text, charset) for text, charset in pieces))


def _piece(text: str | bytes, charset: str | None) -> str:
    if isinstance(text, str):
        return text
    try:
        # What stands between encoded words comes back as Python's own escape of it.
        return text.decode(charset or "raw-unicode-escape", "replace")
    except (LookupError, ValueError):
        return text.decode("latin-1")
