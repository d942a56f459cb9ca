"""The contract checks catch what they are there for: each mutant of a copy must fail its check."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.template import contract
from tests.template.contract import ASL, Project

ROOT = Path(__file__).parents[2]
TEMPLATE = "template.yaml"
REDRIVE = "runbooks/dlq_redrive.yaml"
HEALTH = "runbooks/queue_health_check.yaml"
FORWARD = "{ErrorEquals: [GmailTokenError, GmailRejectedError], MaxAttempts: 0}"


class Mutant(NamedTuple):
    """One replacement (the first occurrence; new None = the file is renamed) and the check that
    must see it."""

    what: str
    file: str
    old: str
    new: str | None
    check: str


MUTANTS = [
    Mutant("dangling Next", ASL, "Next: Safe to deliver?", "Next: Safe to delivr?", "transitions"),
    Mutant("dangling Default", ASL, "Default: Park\n", "Default: Pak\n", "transitions"),
    Mutant("dangling StartAt", ASL, "StartAt: Fetch email", "StartAt: Fetch mail", "transitions"),
    Mutant("dangling Catch", ASL, "Next: Park\n", "Next: Parks\n", "transitions"),
    Mutant("unreachable state", ASL, "Next: Drop as virus", "Next: Look up routes", "transitions"),
    Mutant("Default gone", ASL, "    Default: Delivered\n", "", "transitions"),
    Mutant("End gone", ASL, "          End: true\n", "", "transitions"),
    Mutant("misspelt error", ASL, "GmailTokenError", "GmailTokensError", "error_names"),
    Mutant("Lambda wildcard", ASL, "Lambda.ServiceException", "Lambda.*", "error_names"),
    Mutant("error not named", ASL, ", GmailRejectedError], MaxA", "], MaxA", "error_names"),
    Mutant(
        "error renamed in the code",
        "functions/ses_mail/errors.py",
        "class GmailTemporaryError",
        "class GmailTransientError",
        "error_names",
    ),
    Mutant(
        "new error that nobody reacts to",
        "functions/ses_mail/errors.py",
        "class GmailTokenError",
        'class QuotaError(_FlatError):\n    """New."""\n\n\nclass GmailTokenError',
        "error_names",
    ),
    Mutant("permanent error retried", ASL, FORWARD, FORWARD.replace("0}", "3}"), "retries"),
    Mutant("permanent retrier gone", ASL, f"            - {FORWARD}\n", "", "retries"),
    Mutant("States.ALL not last", ASL, "[DeliveryInProgressError]", "[States.ALL]", "retries"),
    Mutant(
        "jitter on a lease",
        ASL,
        "[DeliveryInProgressError], IntervalSeconds: 60",
        "[DeliveryInProgressError], JitterStrategy: FULL, IntervalSeconds: 60",
        "retries",
    ),
    Mutant(
        "Catch gone",
        ASL,
        "          Catch:\n            - ErrorEquals: [States.ALL]\n",
        "          Cache:\n            - ErrorEquals: [States.ALL]\n",
        "retries",
    ),
    Mutant(
        "Catch too narrow",
        ASL,
        "- ErrorEquals: [States.ALL]",
        "- ErrorEquals: [States.Timeout]",
        "retries",
    ),
    Mutant("TimeoutSeconds gone", ASL, "          TimeoutSeconds: 310\n", "", "timeouts"),
    Mutant("task gives up first", ASL, "TimeoutSeconds: 310", "TimeoutSeconds: 300", "timeouts"),
    Mutant("function outlives its task", TEMPLATE, "Timeout: 300", "Timeout: 400", "timeouts"),
    Mutant(
        "lease longer than the wait", ASL, "MaxDelaySeconds: 400", "MaxDelaySeconds: 300", "waits"
    ),
    Mutant("bounce after 24 h", ASL, "MaxAttempts: 19", "MaxAttempts: 32", "waits"),
    Mutant(
        "longer lease in the code",
        "functions/ses_mail/forward.py",
        "_LEASE_MARGIN = 30.0",
        "_LEASE_MARGIN = 90.0",
        "waits",
    ),
    Mutant(
        "too many attempts for the history",
        ASL,
        "MaxDelaySeconds: 400, MaxAttempts: 16",
        "MaxDelaySeconds: 400, MaxAttempts: 24",
        "history_fits",
    ),
    Mutant(
        "substitution gone",
        TEMPLATE,
        "        BouncerDlqUrl: !Ref BouncerDlq\n",
        "",
        "substitutions_agree",
    ),
    Mutant("substitution misspelt", ASL, "${InputDlqUrl}", "${InputDLQUrl}", "substitutions_agree"),
    Mutant(
        "variable gone",
        TEMPLATE,
        "          DELIVERIES_TABLE: !Ref DeliveriesTable\n",
        "",
        "environment",
    ),
    Mutant(
        "variable unused",
        TEMPLATE,
        "          DOMAINS:",
        "          LIMIT: 1\n          DOMAINS:",
        "environment",
    ),
    Mutant(
        "variable misspelt in the code",
        "functions/router.py",
        'os.environ["ROUTING_TABLE"]',
        'os.environ["ROUTES_TABLE"]',
        "environment",
    ),
    Mutant(
        "default made up",
        "functions/router.py",
        'os.environ["ROUTING_TABLE"]',
        'os.environ.get("ROUTING_TABLE", "")',
        "environment",
    ),
    Mutant(
        "read not permitted",
        TEMPLATE,
        "Action: dynamodb:BatchGetItem",
        "Action: dynamodb:GetItem",
        "permissions",
    ),
    Mutant(
        "missing email = 403",
        TEMPLATE,
        "Action: s3:ListBucket",
        "Action: s3:GetObject",
        "permissions",
    ),
    Mutant(
        "more than needed",
        TEMPLATE,
        "Action: dynamodb:BatchGetItem",
        "Action: dynamodb:*",
        "permissions",
    ),
    Mutant(
        "other table",
        TEMPLATE,
        "!GetAtt RoutingTable.Arn",
        "!GetAtt DeliveriesTable.Arn",
        "permissions",
    ),
    Mutant("bounce not permitted", TEMPLATE, "ses:SendBounce", "ses:SendEmail", "permissions"),
    Mutant(
        "other executions",
        TEMPLATE,
        "execution:ses-mail-process-email",
        "execution:*",
        "permissions",
    ),
    Mutant(
        "new call in the code",
        "functions/ses_mail/tables.py",
        "dynamodb.batch_get_item(",
        "dynamodb.scan(",
        "permissions",
    ),
    Mutant(
        "tokens of mailboxes not readable",
        TEMPLATE,
        "ssm:GetParametersByPath",
        "ssm:GetParameters",
        "permissions",
    ),
    Mutant("any automation", TEMPLATE, "definition/${DlqRedriveDocument}:*", "*", "permissions"),
    Mutant("role not handed over", TEMPLATE, "iam:PassRole", "iam:GetRole", "permissions"),
    Mutant(
        "monitor may send to the input queue",
        TEMPLATE,
        "Action: sqs:GetQueueAttributes,",
        "Action: [sqs:GetQueueAttributes, sqs:SendMessage],",
        "permissions",
    ),
    Mutant(
        "workflow may not invoke",
        TEMPLATE,
        "                  - !GetAtt BouncerFunction.Arn\n",
        "",
        "machine_permissions",
    ),
    Mutant(
        "workflow may invoke anything",
        TEMPLATE,
        "                  - !GetAtt BouncerFunction.Arn\n",
        '                  - "*"\n',
        "machine_permissions",
    ),
    Mutant(
        "workflow may not park",
        TEMPLATE,
        "- !GetAtt BouncerDlq.Arn",
        "- !GetAtt InputQueue.Arn",
        "machine_permissions",
    ),
    Mutant(
        "document's file of another",
        TEMPLATE,
        "Location: runbooks/dlq_redrive.yaml",
        "Location: runbooks/queue_health_check.yaml",
        "documents",
    ),
    Mutant(
        "document replaced",
        TEMPLATE,
        "UpdateMethod: NewVersion",
        "UpdateMethod: Replace",
        "documents",
    ),
    Mutant("document's role of another", REDRIVE, "DlqRedriveRole", "PipeRole", "documents"),
    Mutant("handler of a script", REDRIVE, "Handler: redrive", "Handler: main", "documents"),
    Mutant(
        "parameter not handed on",
        REDRIVE,
        '        Error: "{{ Error }}"\n',
        "",
        "documents",
    ),
    Mutant("output of a script", REDRIVE, '"Remaining":', '"Rest":', "documents"),
    Mutant("output of a step", REDRIVE, "Redrive.FailedCount", "Redrive.Failed", "documents"),
    Mutant(
        "redrive may not delete",
        TEMPLATE,
        "sqs:DeleteMessage, sqs:ChangeM",
        "sqs:ChangeM",
        "document_permissions",
    ),
    Mutant(
        "redrive may send anywhere",
        TEMPLATE,
        "Action: sqs:SendMessage, Resource: !GetAtt InputQueue.Arn",
        'Action: sqs:SendMessage, Resource: "*"',
        "document_permissions",
    ),
    Mutant(
        "health check may not see the pipe",
        TEMPLATE,
        "Action: pipes:DescribePipe",
        "Action: pipes:ListPipes",
        "document_permissions",
    ),
    Mutant(
        "new call in a script",
        HEALTH,
        'client("pipes").describe_pipe(',
        'client("pipes").start_pipe(',
        "document_permissions",
    ),
    Mutant(
        "log group of another",
        TEMPLATE,
        "LogGroup: !Ref RouterLogGroup",
        "LogGroup: !Ref FetcherLogGroup",
        "observing",
    ),
    Mutant(
        "may create log groups",
        TEMPLATE,
        "back\n                Action: [logs:CreateLogStream",
        "back\n                Action: [logs:CreateLogGroup",
        "observing",
    ),
    Mutant("handler's file renamed", "functions/bouncer.py", "", None, "one_name_everywhere"),
    Mutant("event renamed", "events/router.json", "", None, "one_name_everywhere"),
    Mutant(
        "other handler",
        TEMPLATE,
        "Handler: router.handler",
        "Handler: route.handler",
        "one_name_everywhere",
    ),
    Mutant(
        "field not in the event", ASL, '        verdict: "{% $verdict %}"\n', "", "events_match"
    ),
]


def copy_of_project(to: Path) -> Path:
    """The files that the checks read."""
    for folder in ("functions", "statemachines", "events", "runbooks"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / TEMPLATE, to)
    return to


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    root = copy_of_project(tmp_path)
    file = root / mutant.file
    check = getattr(contract, mutant.check)
    before = set(check(Project(root)))
    if mutant.new is None:
        file.rename(file.with_stem(f"{file.stem}_renamed"))
    else:
        text = file.read_text()
        assert mutant.old in text, "the mutant is out of date"
        file.write_text(text.replace(mutant.old, mutant.new, 1))
    assert set(check(Project(root))) - before
