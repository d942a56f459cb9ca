"""What a command prints: tables for people and for pipes, JSON for machines, questions before harm
is done.

A pipe gets one line per row, its cells apart by a tab, nothing cut, folded or coloured; the first
line names the columns. In a terminal nothing breaks inside a word, so that ids, addresses and
commands can be copied; a table too wide for the terminal shows each row as a block of lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import typer
from boto3.dynamodb.types import Binary
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from ses_mail import clock

from .errors import InvalidInputError

_GAP = 2  # between columns
# Ages are rounded down to the largest unit of which there are two.
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def console() -> Console:
    """Standard output; opened again each time, since tests and pipes replace it.

    It folds nothing: a terminal wraps what is too long, and a selection of it stays whole.
    """
    return Console(soft_wrap=True, highlight=False)


def is_terminal() -> bool:
    """Whether a person reads the answer, not a pipe or a file."""
    return sys.stdout.isatty()


# -- times -----------------------------------------------------------------------------------------


def when(at: Any) -> str:
    """A time for people, in UTC with its age: `2026-11-24 10:00:05Z (3 h ago)`.

    Takes the RFC 3339 text of tables and letters too; what is not a time is shown as it is.
    """
    if isinstance(at, str) and (seconds := clock.parse(at)) is not None:
        at = datetime.fromtimestamp(seconds, UTC)
    if not isinstance(at, datetime):
        return cell(at)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z ({age(at)})"


def age(at: datetime) -> str:
    """How long ago a time is, or in how long it comes: `42 s ago`, `3 h ago`, `in 5 d`."""
    seconds = int(clock.now() - at.timestamp())
    if seconds == 0:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def span(seconds: float | None) -> str:
    """How long something is: `42 s`, `3 h`; empty if nobody knows."""
    if seconds is None:
        return ""
    unit, size = next((u, size) for u, size in _UNITS if seconds >= 2 * size or size == 1)
    return f"{int(seconds) // size} {unit}"


def iso(at: datetime | None) -> str | None:
    """A time for machines: `2026-11-24T10:00:05Z`."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if at else None


# -- answers ---------------------------------------------------------------------------------------


def show_json(*values: Any) -> None:
    """One JSON object a line: one for a thing, one per item of a list; times are RFC 3339, UTC."""
    for value in values:
        print(json.dumps(value, default=_json, ensure_ascii=False))  # noqa: T201


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return repr(value) if isinstance(value, Binary) else str(value)


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    empty: str = "Nothing.",
    folding: Collection[str] = (),
) -> None:
    """A table whose cells are plain text: neither markup nor a control character has an effect.

    In a terminal the columns named in `folding` (sentences, lists, subjects) may fold between
    words, the others never do. `empty` is said if there is no row, out of a pipe's way.
    """
    listed = [[cell(value) for value in row] for row in rows]
    if not listed:
        say(empty)
    elif not is_terminal():
        for row in [columns, *listed]:
            _line("\t".join(row))
    elif widths := _widths(columns, listed, folding, console().width):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column, width=width, no_wrap=column not in folding)
        for row in listed:
            table.add_row(*map(Text, row))
        # Its lines are as wide as they must be, whatever Rich thinks of the terminal.
        Console(highlight=False, width=sum(widths) + _GAP * len(widths)).print(table)
    else:
        _show_blocks(columns, listed)


def _widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], folding: Collection[str], room: int
) -> list[int]:
    """Widths of columns that fit into the terminal without breaking a word; none if there are
    none."""
    widths, least = [], []
    for number, column in enumerate(columns):
        cells = [column, *(row[number] for row in rows)]
        widths.append(max(map(cell_len, cells)))
        words = [word for text in cells for word in text.split()]
        least.append(max(map(cell_len, words)) if column in folding else widths[-1])
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return []
    while sum(widths) > room:
        foldable = [n for n, width in enumerate(widths) if width > least[n]]
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return widths


def _show_blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows):
        if number:
            _line("")
        _show_pairs(list(zip(columns, row, strict=True)))


def show_fields(fields: Mapping[str, Any]) -> None:
    """Names and values, one pair a line; to a pipe with a tab between them."""
    pairs = [(name, cell(value)) for name, value in fields.items()]
    if is_terminal():
        _show_pairs(pairs)
    else:
        for pair in pairs:
            _line("\t".join(pair))


def _show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """In a terminal: values fold between words, under themselves."""
    label = max((cell_len(name) for name, _ in pairs), default=0) + _GAP
    room = console().width - label
    for name, value in pairs:
        lines = _folded(value, room)
        if any(cell_len(line) > room for line in lines):
            # A word as long as an id wants a line of its own, from the left edge.
            _line(name)
            for line in _folded(value, console().width):
                _line(line)
            continue
        for number, line in enumerate(lines):
            _line(f"{'' if number else name:{label}}{line}".rstrip())


def _folded(text: str, room: int) -> list[str]:
    """Lines of whole words; only a word that is wider than the room is alone on its line."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def show_text(text: str) -> None:
    """A sentence of the answer; in a terminal it folds between words."""
    for line in _folded(_plain(text), console().width) if is_terminal() else [_plain(text)]:
        _line(line)


def _line(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def say(text: str) -> None:
    """A sentence for the person, none of the answer: on standard error, out of a pipe's way."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


@contextmanager
def written(path: Path, mode: str) -> Iterator[IO[str]]:
    """The file open for writing, its folders made; raises InvalidInputError if it cannot be had."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open(mode, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}") from None
    with file:
        yield file


def confirm(question: str, yes: bool) -> None:
    """Ask before anything is changed that cannot be taken back.

    Raises typer.Abort if the answer is no, InvalidInputError if nobody is there to be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInputError(f"{question} Nobody is there to be asked: add --yes.")
    typer.confirm(question, abort=True, err=True)


def progress(quiet: bool) -> Progress:
    """A bar on standard error, shown only to a person."""
    bar = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=bar,
        disable=quiet or not bar.is_terminal,
    )


def cell(value: Any) -> str:
    """A value as one line of plain text for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return when(value)
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(cell, value))
    # Binary of boto3 has a str() that fails.
    return _plain(repr(value) if isinstance(value, Binary) else str(value))


def _plain(text: str) -> str:
    """Without what could break a line, move a terminal's cursor or not be encoded."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in encodable)
