"""The command as a whole: its options, its help, and how it fails."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from cli.main import app, hoist

from .conftest import Sesmail


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    help_text = ALL[name].help or ""
    assert f"Example: sesmail {name}" in help_text


@pytest.mark.parametrize("line", ["pause --bogus", "nothing", "routes nothing", "routes show"])
def test_wrong_usage_is_told_without_a_stack_trace(sesmail: Sesmail, line: str) -> None:
    ran = sesmail(line, code=2)
    assert ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", ALL)
def test_every_command_is_run_by_a_test(name: str) -> None:
    tests = "".join(
        path.read_text()
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != __file__
    )
    assert f'sesmail("{name}' in tests or f'sesmail(f"{name}' in tests


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["routes", "list", "--json"], ["--json", "routes", "list"]),
        (["find", "--env", "prod", "--to", "x"], ["--env", "prod", "find", "--to", "x"]),
        (["--env=prod", "pause"], ["--env=prod", "pause"]),
        (["routes", "test", "--", "--json"], ["routes", "test", "--", "--json"]),
        (["pause", "--env"], ["--env", "pause"]),
    ],
)
def test_global_options_stand_anywhere(given: list[str], wanted: list[str]) -> None:
    assert hoist(given) == wanted


def test_an_unknown_environment_is_refused(sesmail: Sesmail) -> None:
    assert "neither test nor prod" in sesmail("pause --yes --env staging", code=2).err


def test_an_absent_environment_is_an_error_in_one_line(sesmail: Sesmail) -> None:
    ran = sesmail("resume --env prod", code=4)
    assert ran.err.startswith("Error: ")
    assert "Traceback" not in ran.err


def test_errors_are_json_too(sesmail: Sesmail) -> None:
    assert "ses-email-router-prod" in sesmail("resume --env prod --json", code=4).json["error"]


def test_it_is_installed_with_shell_completion() -> None:
    script = Path(sys.executable).parent / "sesmail"
    ran = subprocess.run(
        [script, "--show-completion", "bash"], capture_output=True, text=True, check=False
    )
    assert "_SESMAIL_COMPLETE" in ran.stdout, ran
