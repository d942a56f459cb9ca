"""The command as a whole: its options, its help, and how it fails."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from botocore.exceptions import ClientError
from typer.core import TyperGroup

from cli import refusals
from cli.hints import hint
from cli.main import app, hoist
from cli.session import Session
from local.cloud import Cloud
from local.iam import ACCOUNT, REGION

from .conftest import ROOT, Sesmail

ELSEWHERE = "us-west-2"


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


ALL = dict(commands(typer.main.get_command(app)))
GROUPS = {name.partition(" ")[0] for name in ALL}


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


@pytest.mark.parametrize(
    "line",
    [
        "dlq list",
        "dlq redrive input",
        "find",
        "pause --yes",
        "resume",
        "replay x",
        "routes check",
        "routes list",
        "token check",
        "token check --mailbox anna@example.com",
        "token set --file no.json",
        "trace x",
    ],
)
@pytest.mark.parametrize("where", ["--env prod", f"--region {ELSEWHERE}"])
def test_an_absent_environment_is_named_with_what_to_give(
    sesmail: Sesmail, line: str, where: str
) -> None:
    ran = sesmail(f"{line} {where}", code=4)
    environment, region = ("prod", REGION) if where == "--env prod" else ("test", ELSEWHERE)
    assert ran.err.startswith(
        f"Error: Environment {environment} is not, or not wholly, deployed in region {region} of "
        f"account {ACCOUNT} ("
    )
    assert ran.err.endswith("give --env, --region or --profile of the one that you mean\n")
    assert ran.out == ""


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("routes list --region ''", 2, "--region: it is empty"),
        ("routes list --profile ''", 2, "--profile: it is empty"),
        ("routes list --endpoint-url nonsense", 2, "'nonsense' is not a URL"),
        ("routes list --endpoint-url http://[", 2, "'http://[' is not a URL"),
        ("routes list --endpoint-url http://127.0.0.1:99999", 2, "is not a URL"),
        ("routes list --region 'eu west'", 4, "'eu west' is not the name of an AWS region: give"),
        ("routes list --profile nosuch", 4, "There is no profile nosuch in the AWS configuration"),
        (
            "routes list --endpoint-url http://127.0.0.1:9",
            4,
            "No answer from http://127.0.0.1:9/ (EndpointConnectionError): is the network there, "
            "and is --endpoint-url right?",
        ),
    ],
)
def test_what_is_wrong_with_where_is_said_in_one_sentence(
    sesmail: Sesmail, line: str, code: int, said: str
) -> None:
    ran = sesmail(line, code=code)
    assert said in " ".join(ran.err.replace("│", "").split())
    assert "Traceback" not in ran.err


def test_without_a_region_and_without_credentials(
    sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert "No AWS region is chosen: give --region" in sesmail("trace x", code=4).err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    ran = sesmail(f"token check --region {REGION}", code=4)
    assert "Profile default has no AWS credentials: give --profile" in ran.err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ExpiredTokenException", "AWS does not accept the credentials of profile mine"),
        ("AccessDeniedException", "Profile mine may not do this in account 123456789012: give"),
        ("ThrottlingException", "An error occurred (ThrottlingException) when calling the Scan"),
    ],
)
def test_what_aws_refuses(code: str, said: str) -> None:
    error = ClientError({"Error": {"Code": code, "Message": "no."}}, "Scan")
    session = Session("test", profile="mine")
    session.caller = {"Account": ACCOUNT}
    assert refusals.explained(error, session).startswith(said)


@pytest.mark.parametrize("name", ALL)
def test_every_help_shows_the_global_options(sesmail: Sesmail, name: str) -> None:
    shown = sesmail(f"{name} --help").out
    for option in ("--env", "--profile", "--region", "--endpoint-url", "--json", "--version"):
        assert option in shown


def test_the_version_is_told_anywhere(sesmail: Sesmail) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert sesmail("--version").out == sesmail("dlq list --version").out == f"sesmail {version}\n"


def test_a_hint_acts_where_the_command_did(
    cloud: Cloud, sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cloud.put_rule("hinted@example.com", "foward")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / "credentials").write_text(f"[mine]\n{keys}")
    given = f"--env test --profile mine --region {REGION} --endpoint-url {cloud.aws_url}"
    assert f"See sesmail routes check {given}" in sesmail(f"routes list {given}").err
    # Nobody chose anything: it holds for the same shell.
    assert sesmail("routes list").err.endswith("See sesmail routes check\n")
    # But the environment is named in any shell, and the next command does not inherit it.
    monkeypatch.setenv("SESMAIL_ENV", "test")
    assert sesmail("routes list").err.endswith("See sesmail routes check --env test\n")
    assert hint("routes", "show", "*") == "sesmail routes show '*'"


def test_no_hint_is_made_elsewhere() -> None:
    """A hint typed by hand would lose the options."""
    for path in (ROOT / "cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.search(rf"sesmail ({'|'.join(GROUPS)})\b", node.value)
                is_docstring = node.value.count("\n") > 1 or node.value.startswith(("`", "Show"))
                assert is_docstring or not named, (path, node.value)


def test_errors_are_json_too(sesmail: Sesmail) -> None:
    assert "ses-email-router-prod" in sesmail("resume --env prod --json", code=4).json["error"]


def test_it_is_installed_with_shell_completion() -> None:
    script = Path(sys.executable).parent / "sesmail"
    ran = subprocess.run(
        [script, "--show-completion", "bash"], capture_output=True, text=True, check=False
    )
    assert "_SESMAIL_COMPLETE" in ran.stdout, ran
