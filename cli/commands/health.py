"""`sesmail health`: the health check's report."""

from __future__ import annotations

import json
from typing import Any

import typer

from .. import automation
from ..errors import CheckFailedError, CommandError
from ..output import console, show_json, show_table
from ..session import Session


def health(context: typer.Context) -> None:
    """Check queues, dead letters, pipe, executions and tokens, and say what is wrong.

    Runs the document SESMail-Queue-HealthCheck-{env}, which changes nothing. Exit code 1 if the
    environment is unhealthy.

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
    console().print(f"{status} at {report.get('at')}", markup=False)
    show_table(
        ("queue", "waiting", "in flight", "oldest (s)"),
        [
            (q["name"], q.get("visible"), q.get("inFlight"), q.get("oldestSeconds"))
            for q in (report["inputQueue"], *report["deadLetters"])
        ],
    )
    pipe, failed, token = report["pipe"], report["failedExecutions"], report["gmailToken"]
    rows = [
        ("pipe", f"{pipe.get('state', '?')}, wanted {pipe.get('desiredState', '?')}"),
        ("failed executions, 24 h", failed.get("last24h")),
        *((f"  {e['status']}", e["name"]) for e in failed.get("newest", [])),
        ("Gmail tokens work", token.get("valid")),
    ]
    show_table(("", ""), rows)
    for issue in report["issues"]:
        console().print(f"• {issue}", markup=False)
