"""What a command prints: tables for people, JSON for machines, questions before harm is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .errors import InvalidInputError


def console() -> Console:
    """Standard output; made anew each time, since tests and pipes replace it."""
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


def show_json(value: Any) -> None:
    """One JSON document; what JSON does not know (times, decimals) becomes text."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))  # noqa: T201


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "Nothing."
) -> None:
    """A table whose cells are plain text: `[x]` in a subject is no markup."""
    listed = list(rows)
    if not listed:
        console().print(empty, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in listed:
        table.add_row(*(Text(_cell(value)) for value in row))
    console().print(table)


def show_fields(fields: Mapping[str, Any]) -> None:
    """Names and values, one pair a line."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        console().print(f"{name:{width}}  {_cell(value)}", markup=False)


def say(text: str) -> None:
    """A sentence for the person, none of the answer: on standard error, out of a pipe's way."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value))
    return str(value)
