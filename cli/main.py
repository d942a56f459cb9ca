"""The command line: global options, and the commands that the other modules bring."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError
from google.auth.exceptions import GoogleAuthError

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
_FLAGS = ("--json",)

app = typer.Typer(
    name="sesmail",
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
        typer.Option(help="Another AWS, such as the one of `make local`.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")] = False,
) -> None:
    """Operate ses-mail: rules, emails, dead letters, tokens and the pipe of one environment."""
    if env not in ("test", "prod"):
        raise typer.BadParameter(f"{env!r} is neither test nor prod", param_hint="--env")
    context.obj = Session(env, profile, region, endpoint_url, json)


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
        app(given, prog_name="sesmail")
    except (CommandError, ClientError, BotoCoreError, GoogleAuthError) as error:
        if "--json" in given:
            show_json({"error": str(error)})
        say(f"Error: {error}")
        sys.exit(error.exit_code if isinstance(error, CommandError) else CommandError.exit_code)
