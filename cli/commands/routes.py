"""`sesmail routes`: the rules that decide where an email goes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from botocore.exceptions import ClientError
from ses_mail import route_table, routing
from ses_mail.errors import printable

from .. import refusals, rule_check, rule_table, rules, tokens
from ..errors import ChangedMeanwhileError, CheckFailedError, InvalidInputError
from ..hints import hint
from ..output import (
    confirm,
    progress,
    say,
    show_fields,
    show_json,
    show_table,
    when,
    written,
)
from ..session import Session

routes = typer.Typer(
    no_args_is_help=True, help="Rules: list, change, test and check them, keep them in a file."
)

Pattern = Annotated[
    str, typer.Argument(metavar="PATTERN", help="user@example.com, *@example.com or *")
]
Description = Annotated[str | None, typer.Option(help="A note for people.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
_ACTIONS = ", ".join(routing.ACTIONS)


def _actions() -> list[str]:
    return list(routing.ACTIONS)


@routes.command("list")
def list_rules(
    context: typer.Context,
    disabled: Annotated[bool, typer.Option("--disabled", help="Only what is disabled.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="What is disabled too.")] = False,
) -> None:
    """List the rules that are enabled. Changes nothing.

    Example: sesmail routes list --all
    """
    session: Session = context.obj
    found = [rules.described(item) for item in rule_table.all_rules(session)]
    shown = [r for r in found if everything or (r["enabled"] is False) == disabled]
    if session.as_json:
        show_json(*shown)
        return
    show_table(
        ["pattern", "action", "targets", "enabled", "description"],
        [
            [r[name] for name in ("pattern", "action", "targets", "enabled", "description")]
            for r in shown
        ],
        empty="No rules.",
        folding=("targets", "description"),
    )
    if malformed := [r["pattern"] for r in shown if r["problem"]]:
        say(f"Malformed: {', '.join(malformed)}. See {hint('routes', 'check')}")
    if hidden := len(found) - len(shown):
        say(f"{hidden} more: {hint('routes', 'list', '--all')}")


@routes.command()
def show(context: typer.Context, pattern: Pattern) -> None:
    """Show a rule, and who changed it when. Changes nothing.

    Example: sesmail routes show support@example.com
    """
    session: Session = context.obj
    item = rule_table.find(session, pattern)
    history = item.get("history")
    # A person with the console may have put anything there.
    entries = [e for e in history if isinstance(e, dict)] if isinstance(history, list) else []
    answer = rules.described(item)
    if session.as_json:
        show_json(answer | {"history": entries})
        return
    times = {name: when(answer[name]) for name in ("created_at", "updated_at")}
    show_fields(answer | times)
    if entries:
        show_table(
            ["at", "by", "change"],
            [[when(e.get("at")), e.get("by"), e.get("change")] for e in entries],
            folding=("change",),
        )


@routes.command()
def add(
    context: typer.Context,
    pattern: Pattern,
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help=_ACTIONS, autocompletion=_actions)
    ],
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGET]...", help="Mailboxes, for forward-to-gmail."),
    ] = None,
    description: Description = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Without effect for now.")] = False,
) -> None:
    """Add a rule; it takes effect for the next email.

    A pattern that has a rule already is refused.

    Example: sesmail routes add support@example.com forward-to-gmail you@gmail.com
    """
    session: Session = context.obj
    rule = rules.wanted(pattern, action, targets or [], not disabled, description or "")
    try:
        item = rule_table.write(session, None, rule.attributes())
    except ChangedMeanwhileError:
        raise InvalidInputError(
            f"there is a rule for {rule.pattern} already: change it with "
            f"{hint('routes', 'update', rule.pattern)}"
        ) from None
    _show_change(session, item, "added")


@routes.command()
def update(
    context: typer.Context,
    pattern: Pattern,
    action: Annotated[
        str | None, typer.Option(help=f"Another action: {_ACTIONS}", autocompletion=_actions)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A mailbox instead of those there are; may be repeated."),
    ] = None,
    description: Description = None,
) -> None:
    """Change a rule; it takes effect for the next email.

    What is not given stays, and so does whether it is enabled. A malformed rule may be fixed piece
    by piece: as long as something is wrong, it says what, and ends with 1.

    Example: sesmail routes update support@example.com --target me@gmail.com --target you@gmail.com
    """
    session: Session = context.obj
    if action is None and not target and description is None:
        raise InvalidInputError("nothing to change: give --action, --target or --description")
    before = rule_table.find(session, pattern)
    _change(session, before, rules.changed(before, action, target or [], description))


@routes.command()
def enable(context: typer.Context, pattern: Pattern) -> None:
    """Let a disabled rule take effect again.

    Example: sesmail routes enable support@example.com
    """
    session: Session = context.obj
    before = rule_table.find(session, pattern)
    rule = {**before, "enabled": True}
    if defect := rules.defect_of(rule):
        fix = hint("routes", "update", route_table.pattern(before))
        raise InvalidInputError(f"{defect}; fix it first: {fix}")
    _change(session, before, {"enabled": True})


@routes.command()
def disable(context: typer.Context, pattern: Pattern) -> None:
    """Make a rule as if it were not there, without losing it.

    Example: sesmail routes disable support@example.com
    """
    session: Session = context.obj
    _change(session, rule_table.find(session, pattern), {"enabled": False})


@routes.command()
def remove(context: typer.Context, pattern: Pattern, yes: Yes = False) -> None:
    """Remove a rule and its history.

    Example: sesmail routes remove support@example.com --yes
    """
    session: Session = context.obj
    item = rule_table.find(session, pattern)
    confirm(f"Remove {_sentence(item)}?", yes)
    rule_table.remove(session, item)
    _show_change(session, item, "removed")


@routes.command("import")
def import_rules(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What export wrote; - is standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would do.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the rules that the file does not have.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Bring the rules of a file into the table: one JSON object a line, with pattern, action and,
    if need be, targets, enabled and description.

    All lines are checked before anything is written; a second run changes nothing.

    Example: sesmail routes import rules.jsonl --dry-run
    """
    session: Session = context.obj
    wanted = rules.from_lines(_lines(file))
    steps = rules.plan(rule_table.all_rules(session), wanted, replace)
    if not session.as_json:
        show_table(
            ["pattern", "change"],
            [[step.pattern, step.change] for step in steps],
            empty="Nothing to do: the table has these rules.",
            folding=("change",),
        )
    if steps and not dry_run:
        removed = sum(step.rule is None for step in steps)
        confirm(f"Write {len(steps) - removed} rules and remove {removed}?", yes)
        _take(session, steps)
    if session.as_json:
        changes = [{"pattern": step.pattern, "change": step.change} for step in steps]
        show_json({"changes": changes, "unchanged": _untouched(wanted, steps), "dry_run": dry_run})


@routes.command("export")
def export_rules(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="Where to; - is standard output.", show_default=False)
    ] = Path("-"),
) -> None:
    """Write all rules, disabled ones too, as lines that import reads. Changes nothing.

    Example: sesmail routes export rules.jsonl
    """
    session: Session = context.obj
    items = rule_table.all_rules(session)
    if bad := [defect for item in items if (defect := rules.defect_of(item))]:
        raise CheckFailedError("\n".join(["these rules cannot be exported, fix them first:", *bad]))
    lines = [f"{rules.from_item(item).as_line()}\n" for item in items]
    if str(file) == "-":
        sys.stdout.writelines(lines)
        return
    with written(file, "w") as out:
        out.writelines(lines)
    answer = {"file": str(file), "rules": len(lines)}
    show_json(answer) if session.as_json else show_fields(answer)


@routes.command()
def test(
    context: typer.Context,
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Recipients.")],
) -> None:
    """Say where mail to an address goes, and why. Sends and changes nothing.

    It asks the table as the router does, with the router's code.

    Example: sesmail routes test support+news@example.com
    """
    session: Session = context.obj
    if unusable := [a for a in addresses if not a.strip() or not a.isprintable()]:
        raise InvalidInputError(f"{unusable[0]!r} is not an address")
    answers = explain(session, addresses)
    if session.as_json:
        show_json(*answers)
    else:
        for number, answer in enumerate(answers):
            if number:
                say("")
            show_fields({name: value for name, value in answer.items() if name != "tried"})
            show_table(["key", "found"], [list(key.values()) for key in answer["tried"]])
    if any(answer["action"] == routing.PARK for answer in answers):
        say("A malformed rule: its recipients are parked in the input DLQ.")
        raise typer.Exit(CheckFailedError.exit_code)


def explain(session: Session, addresses: list[str]) -> list[dict[str, Any]]:
    """What `routes test` answers for each address."""
    found = route_table.rules_for(session.dynamodb, session.routing_table, addresses)
    return [rules.explained(address, found) for address in addresses]


@routes.command()
def check(context: typer.Context) -> None:
    """Look for rules that are malformed, dead or redundant, and for targets without credentials.

    Changes nothing. Ends with 1 if there is a defect; notes are only worth reading.

    Example: sesmail routes check
    """
    session: Session = context.obj
    skipped: list[rule_check.Finding] = []
    received = _received(session, skipped)
    known = _tokens(session, skipped)
    found = rule_check.findings(rule_table.everything(session), received, known) + skipped
    if session.as_json:
        show_json(*(asdict(finding) for finding in found))
    else:
        show_table(
            ["pattern", "severity", "problem", "advice"],
            [[f.pattern, f.severity, f.problem, f.advice] for f in found],
            empty="All is well.",
            folding=("problem", "advice"),
        )
    if any(finding.severity == rule_check.DEFECT for finding in found):
        raise typer.Exit(CheckFailedError.exit_code)


def _received(session: Session, skipped: list[rule_check.Finding]) -> list[str] | None:
    """Recipients of the receipt rule that is live."""
    try:
        active = session.ses.describe_active_receipt_rule_set()
    except ClientError as error:
        skipped.append(_skipped(error, "which domains SES takes mail for"))
        return None
    for rule in active.get("Rules", []):
        if rule["Name"] == session.receipt_rule and rule.get("Enabled"):
            return rule.get("Recipients", [])
    problem = f"the active receipt rule set has no enabled rule {session.receipt_rule}"
    advice = "activate the rule set (aws ses set-active-receipt-rule-set): no mail comes in"
    skipped.append(rule_check.Finding("", rule_check.NOTE, problem, advice))
    return None


def _tokens(session: Session, skipped: list[rule_check.Finding]) -> tokens.Tokens | None:
    try:
        return tokens.existing(session)
    except ClientError as error:
        skipped.append(_skipped(error, "which credentials there are"))
        return None


def _skipped(error: ClientError, what: str) -> rule_check.Finding:
    if not refusals.is_denied(error):
        raise error
    return rule_check.Finding(
        "",
        rule_check.NOTE,
        f"not checked: {what} ({error.operation_name} is denied)",
        f"allow {error.operation_name}",
    )


# -- the way to the table --------------------------------------------------------------------------


def _change(session: Session, before: dict[str, Any], attributes: dict[str, Any]) -> None:
    change = rules.difference(before, attributes)
    item = rule_table.write(session, before, attributes) if change else before
    _show_change(session, item, change)
    if defect := rules.defect_of(item):
        say(f"Still malformed: {defect}")
        if item.get("enabled", True) is not False:
            raise typer.Exit(CheckFailedError.exit_code)


def _show_change(session: Session, item: dict[str, Any], change: str) -> None:
    if session.as_json:
        show_json({"change": change or None, "rule": rules.described(item)})
    else:
        show_fields({"rule": _sentence(item), "change": change or "none, it is so already"})


def _take(session: Session, steps: list[rules.Step]) -> None:
    lost: list[str] = []
    done = 0
    try:
        with progress(session.as_json) as bar:
            for step in bar.track(steps, description="Writing"):
                try:
                    if step.rule:
                        rule_table.write(session, step.before, step.rule.attributes())
                    elif step.before:
                        rule_table.remove(session, step.before)
                except ChangedMeanwhileError:
                    lost.append(step.pattern)
                else:
                    done += 1
    finally:
        say(f"{done} of {len(steps)} changes are made.")
    if lost:
        raise ChangedMeanwhileError(
            f"changed by somebody else just now, and left as they are: {', '.join(lost)}; "
            "import again"
        )


def _untouched(wanted: list[rules.Wanted], steps: list[rules.Step]) -> int:
    return len(wanted) - sum(step.rule is not None for step in steps)


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read: {error}") from None
    # Not splitlines(): JSON texts may hold U+2028 as it is.
    return text.split("\n")


def _sentence(item: dict[str, Any]) -> str:
    rule = rules.described(item)
    words = map(rules.plain, (rule["pattern"], rule["action"], *rule["targets"]))
    return printable(" ".join(words))
