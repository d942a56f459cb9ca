"""What commands print, to a pipe and in terminals of any width."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from cli import output
from tests.fixtures import ROOT
from tests.fixtures.clock import Clock

ID = "o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1"
ADDRESS = "somebody.with.a.long.name@department.example.com"
PROBLEM = f"no credentials for {ADDRESS}: neither its own nor the default one exists"

PROGRAM = f"""
from cli.output import show_fields, show_table, show_text
show_table(
    ("message id", "to", "problem"),
    [("{ID}", "{ADDRESS}", "{PROBLEM}"), ("short", "a@b.example", "none")],
    folding=("problem",),
)
show_fields({{"email": "{ID}", "recipients": ["{ADDRESS}", "{ADDRESS}"]}})
show_text("Email {ID} waits for {ADDRESS}.")
"""


def in_terminal(program: str, columns: int) -> str:
    """What a terminal of so many columns is given, by a real pseudo-terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {n: v for n, v in os.environ.items() if n not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": f"{ROOT}:{ROOT}/functions"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_ids_and_addresses_never_break_in_a_terminal(columns: int) -> None:
    shown = in_terminal(PROGRAM, columns)
    assert shown.count(ID) == 3
    assert shown.count(ADDRESS) == 5
    # Only a single word may be wider than the terminal.
    for line in shown.splitlines():
        assert len(strip(line)) <= columns or " " not in strip(line).strip(), line


def strip(line: str) -> str:
    return line.replace("\x1b[1m", "").replace("\x1b[0m", "").rstrip()


@pytest.mark.parametrize(("columns", "lines"), [(40, None), (145, 5), (250, 3)])
def test_a_table_that_does_not_fit_shows_blocks(columns: int, lines: int | None) -> None:
    table = PROGRAM.partition("show_fields(")[0]
    shown = in_terminal(table, columns).splitlines()
    if lines is None:
        assert shown[:2] == ["message id", ID]
    else:
        assert strip(shown[0]).split() == ["message", "id", "to", "problem"]
        assert len(shown) == lines


def test_wide_characters_count_twice() -> None:
    program = 'from cli.output import show_table; show_table(("a", "b"), [("日本" * 20, "x")])'
    assert "x" in in_terminal(program, 83).splitlines()[1]
    assert in_terminal(program, 82).splitlines()[:2] == ["a", "日本" * 20]


def test_a_pipe_gets_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[ID, ["a@b.example", "c@d.example"], "x" * 5000], ["two", None, True]]
    output.show_table(("id", "to", "problem"), rows, folding=("problem",))
    output.show_fields({"email": ID, "recipients": ["a@b.example", "c@d.example"]})
    assert capsys.readouterr().out.split("\n") == [
        "id\tto\tproblem",
        f"{ID}\ta@b.example, c@d.example\t{'x' * 5000}",
        "two\t\tyes",
        f"email\t{ID}",
        "recipients\ta@b.example, c@d.example",
        "",
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        "two\nlines",
        "a\ttab",
        "\x1b[31mred\x1b[0m",
        "\x9b31m",
        "right to left \u202e",
        "line separator \u2028",
        "lone surrogate \ud800",
    ],
)
def test_a_cell_stays_one_cell_and_moves_no_cursor(
    capsys: pytest.CaptureFixture[str], hostile: str
) -> None:
    output.show_table(("a", "b"), [(hostile, "x")])
    output.show_fields({"a": hostile})
    output.show_text(hostile)
    table, text = capsys.readouterr().out.split("a\tb\n")[1].split("a\t", 1)
    assert table.count("\t") == 1
    assert all(c.isprintable() or c in "\t\n" for c in table + text)
    assert (table + text).count("\n") == 3


def test_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("a",), [("[red]x[/red]",)])
    assert capsys.readouterr().out == "a\n[red]x[/red]\n"


def test_no_row_is_said_out_of_a_pipes_way(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("a",), [], empty="No rules.")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "No rules.\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "now"),
        (0.9, "now"),
        (1, "1 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7199, "119 min ago"),
        (7200, "2 h ago"),
        (172799, "47 h ago"),
        (172800, "2 d ago"),
        (90 * 86400, "90 d ago"),
        (-3600, "in 60 min"),
        (-10 * 86400, "in 10 d"),
    ],
)
def test_ages(time: Clock, seconds: float, shown: str) -> None:
    assert output.age(datetime.fromtimestamp(time() - seconds, UTC)) == shown


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (datetime(2026, 11, 24, 7, 0, 5, tzinfo=UTC), "2026-11-24 07:00:05Z (3 h ago)"),
        ("2026-11-24T07:00:05Z", "2026-11-24 07:00:05Z (3 h ago)"),
        ("2026-11-24T09:00:05.123+02:00", "2026-11-24 07:00:05Z (2 h ago)"),
        ("yesterday", "yesterday"),  # whatever a person put into a table
        (None, ""),
        ("", ""),
    ],
)
def test_times_have_one_form(time: Clock, at: datetime | str | None, shown: str) -> None:
    assert output.when(at) == shown


def test_json_has_one_form_of_times_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 11, 24, 9, 0, 5, 999, UTC) + timedelta(hours=1)
    output.show_json({"at": at, "n": Decimal(3), "x": Decimal("0.5"), "set": {"b", "a"}})
    output.show_json()
    assert capsys.readouterr().out == (
        '{"at": "2026-11-24T10:00:05Z", "n": 3, "x": 0.5, "set": ["a", "b"]}\n'
    )
