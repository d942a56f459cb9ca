"""The command line: global options, and the commands that the other modules bring."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from contextvars import copy_context
from importlib import metadata
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from botocore.exceptions import BotoCoreError, ClientError
from google.auth.exceptions import GoogleAuthError
from typer.core import TyperGroup

from . import hints, refusals
from .commands.dlq import dlq
from .commands.find import find
from .commands.health import health
from .commands.pipe import pause, resume
from .commands.replay import replay
from .commands.routes import routes
from .commands.token import tokens
from .commands.trace import trace
from .errors import CommandError
from .output import say, show_json
from .session import Session

# With a value, or without one; main() lets them stand anywhere.
_VALUED = ("--env", "--profile", "--region", "--endpoint-url")
_FLAGS = ("--json", "--version")


class _Sesmail(TyperGroup):
    """The whole command; knows where AWS was asked when it refuses."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ClientError, BotoCoreError) as error:
            raise CommandError(refusals.explained(error, ctx.obj)) from error


app = typer.Typer(
    name="sesmail",
    cls=_Sesmail,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Operate ses-mail: rules, emails, dead letters, tokens and the pipe of one environment.",
    epilog="Exit codes: 0 well, 1 the answer is no, 2 wrong input, 3 no such thing, "
    "4 AWS or Google refused, 5 changed meanwhile.",
)
app.add_typer(routes, name="routes")
app.command()(trace)
app.command()(find)
app.add_typer(dlq, name="dlq")
app.command()(replay)
app.command()(health)
app.add_typer(tokens, name="token")
app.command()(pause)
app.command()(resume)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sesmail {metadata.version('ses-mail')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def choose(
    context: typer.Context,
    env: Annotated[
        str, typer.Option(envvar="SESMAIL_ENV", help="The environment: test or prod.")
    ] = "test",
    profile: Annotated[
        str | None, typer.Option(help="Profile of the AWS configuration.", show_default=False)
    ] = None,
    region: Annotated[
        str | None,
        # The variable that all other SDKs know; boto3 reads AWS_DEFAULT_REGION only.
        typer.Option(envvar="AWS_REGION", help="AWS region of the stack.", show_default=False),
    ] = None,
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            envvar="AWS_ENDPOINT_URL",
            help="Another AWS, such as the one of `make local`.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Answer in JSON, one object a line, for machines.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Operate ses-mail: rules, emails, dead letters, tokens and the pipe of one environment."""
    if env not in ("test", "prod"):
        raise typer.BadParameter(f"{env!r} is neither test nor prod", param_hint="--env")
    for option, value in {"--profile": profile, "--region": region}.items():
        if value is not None and not value.strip():
            raise typer.BadParameter("it is empty: give one, or leave it out", param_hint=option)
    if endpoint_url is not None and not _is_url(endpoint_url):
        raise typer.BadParameter(
            f"{endpoint_url!r} is not a URL such as http://127.0.0.1:4566",
            param_hint="--endpoint-url",
        )
    hints.choose(_repeated(context))
    context.obj = Session(env, profile, region, endpoint_url, json)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _repeated(context: typer.Context) -> dict[str, str]:
    """The options that a hint needs; variables hold in the shell that it is pasted into.

    But the environment: nothing is more easily pasted into the wrong window.
    """
    given = {}
    for option in _VALUED:
        name = option.removeprefix("--").replace("-", "_")
        source = context.get_parameter_source(name)
        wanted = ("COMMANDLINE", "ENVIRONMENT") if option == "--env" else ("COMMANDLINE",)
        if source is not None and source.name in wanted:
            given[option] = str(context.params[name])
    return given


def _with_global_options() -> Any:
    """The command, each of whose subcommands shows the global options in its help."""
    root = typer.main.get_command(app)
    shown = []
    for parameter in root.params:
        if parameter.opts[0] in (*_VALUED, *_FLAGS):
            option: Any = copy.copy(parameter)
            option.expose_value, option.is_eager, option.callback = False, False, None
            option.rich_help_panel = "Options of every command"
            shown.append(option)
    below = list(root.commands.values())  # type: ignore[attr-defined]
    while below:
        command = below.pop()
        command.params += shown
        below += getattr(command, "commands", {}).values()
    return root


def hoist(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options moved to the front, where click wants them.

    >>> hoist(["routes", "list", "--json", "--env=prod", "--", "--json"])
    ['--json', '--env=prod', 'routes', 'list', '--', '--json']
    """
    front: list[str] = []
    rest = list(arguments)
    index = 0
    while index < len(rest) and rest[index] != "--":
        if rest[index] in _FLAGS or rest[index].startswith(tuple(f"{o}=" for o in _VALUED)):
            front.append(rest.pop(index))
        elif rest[index] in _VALUED:
            front += rest[index : index + 2]
            del rest[index : index + 2]
        else:
            index += 1
    return front + rest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code (see errors.py)."""
    given = hoist(sys.argv[1:] if arguments is None else arguments)
    try:
        # Ends the process itself: well, with a command's own code, or for wrong usage with 2.
        copy_context().run(_with_global_options(), given, prog_name="sesmail")
    except (CommandError, GoogleAuthError, OSError) as error:
        if "--json" in given:
            show_json({"error": str(error)})
        say(f"Error: {error}")
        sys.exit(error.exit_code if isinstance(error, CommandError) else CommandError.exit_code)
