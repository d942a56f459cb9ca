"""`sesmail health`: the health check's report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import typer

from .. import automation
from ..errors import CheckFailedError, CommandError
from ..output import show_json, show_table, show_text, span, when
from ..session import Session


def health(context: typer.Context) -> None:
    """Check everything that mail passes, and say what is wrong now.

    Receipt rule, queues, dead letters, pipe, executions, tokens and alarms. Runs the document
    SESMail-Queue-HealthCheck-{env}, which changes nothing. Exit code 1 if the environment is
    unhealthy.

    Example: sesmail health
    """
    session: Session = context.obj
    outputs = automation.run(session, session.health_document, {})
    try:
        status = outputs["HealthStatus"]
        report: dict[str, Any] = json.loads(outputs["HealthReport"])
    except (KeyError, ValueError) as error:
        raise CommandError(f"{session.health_document} gave no report: {error!r}") from None
    if session.as_json:
        show_json({"status": status, "report": report})
    else:
        _show(status, report)
    if status != "HEALTHY":
        # The report is the answer; a sentence more would say nothing new, and spoil its JSON.
        raise typer.Exit(CheckFailedError.exit_code)


def _show(status: str, report: dict[str, Any]) -> None:
    show_text(
        f"{status} at {when(report['at'])}: {report['environment']} in {report['region']}, account "
        f"{report['account']}"
    )
    for issue in report["issues"]:
        show_text(f"• {issue}")
    show_table(
        ("queue", "waiting", "in flight", "oldest"),
        [
            (q["name"], q.get("visible"), q.get("inFlight"), span(q.get("oldestSeconds")))
            for q in (report["inputQueue"], *report["deadLetters"])
        ],
    )
    show_table(("part", "state"), _parts(report))


def _parts(report: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    rule, pipe = report["receiptRule"], report["pipe"]
    running, failed = report["runningExecutions"], report["failedExecutions"]
    yield f"receipt rule {rule['name']} enabled", rule.get("enabled")
    yield (
        f"pipe {pipe['name']}",
        f"{pipe.get('state', '?')}, wanted {pipe.get('desiredState', '?')}",
    )
    yield "emails under way", running.get("count")
    yield "  being retried", running.get("delayed")
    for execution in running.get("oldest", []):
        yield f"  {execution['status']}", execution["name"]
    yield "failed executions, 24 h", failed.get("last24h")
    for execution in failed.get("newest", []):
        yield f"  {execution['status']}", execution["name"]
    token = report["gmailToken"]
    checked = f", checked {when(token['checkedAt'])}" if "checkedAt" in token else ""
    yield f"Gmail tokens work{checked}", token.get("valid")
    for alarm in report["alarms"]:
        # What is looked at above may be over, though its alarm looks back for longer.
        also = "" if alarm["issue"] else " (by itself not an issue: see above)"
        yield f"alarm since {when(alarm['since'])}", f"{alarm['name']}{also}"
