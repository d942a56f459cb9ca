"""The header block of a stored email, read to its end whatever stands in it.

The standard library's parser stops at the first line that is not a header; a guard that must see
`Auto-Submitted` behind such a line cannot use it.
"""

import re

_LINE_END = re.compile(rb"\r{0,2}\n|\r")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
# Not two bare CR: where every line ends in CR CR LF, the headers would be over at the first line,
# and a guard would not see the others.
BLANK_LINE = re.compile(rb"\n\r{0,2}\n")

Headers = list[tuple[str, str]]


def parse(block: bytes) -> Headers:
    """(lower-cased name, unfolded value) in the order of the email; other lines are skipped.

    Values are Latin-1 text: any byte survives, and guards only compare ASCII.
    """
    fields: list[tuple[bytes, list[bytes]]] = []
    for line in _LINE_END.split(block):
        if line[:1] in (b" ", b"\t") and fields:
            # Joined once at the end: a header of a million folded lines is a stranger's to send.
            fields[-1][1].append(line.strip())
        elif match := _FIELD.match(line):
            fields.append((match[1], [match[2].strip()]))
    return [(n.decode("ascii").lower(), b" ".join(v).decode("latin-1")) for n, v in fields]


def block_of(start: bytes) -> bytes:
    """The bytes up to the first blank line, or all of them if there is none."""
    if start[:2] == b"\r\n" or start[:1] in (b"\n", b"\r"):
        return b""
    match = BLANK_LINE.search(start)
    if match is None and b"\n" not in start:
        # Every line ends in a bare CR.
        return start.partition(b"\r\r")[0]
    return start[: match.start()].rstrip(b"\r") if match else start


def values(headers: Headers, name: str) -> list[str]:
    """All values of a header, in order."""
    return [value for key, value in headers if key == name]


def received_count(headers: Headers) -> int:
    """Number of `Received` lines: the hops so far (RFC 5321 §6.3)."""
    return len(values(headers, "received"))
