"""The health check document: what it finds wrong, and that a failing call hides nothing else."""

import ast
import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import moto.pipes.models as moto_pipes
import pytest

from local.cloud import Cloud
from local.iam import ACCOUNT, REGION
from tests.template.contract import as_list
from tests.workflow.kit import Post

from .documents import script

CHECK = "SESMail-Queue-HealthCheck-test"


@pytest.fixture
def post(cloud: Cloud) -> Iterator[Post]:
    cloud.events.paused = True
    cloud.pass_time(days=30)  # since the tests before
    yield Post(cloud)
    cloud.pipe.resume()
    cloud.wait_idle()
    Post(cloud).take()
    cloud.events.paused = False


def checked(post: Post, minutes: int, *values: float) -> None:
    """What the token monitor publishes, so many minutes ago."""
    post.cloud.client("cloudwatch").put_metric_data(
        Namespace="SESMail/test",
        MetricData=[
            {
                "MetricName": "GmailTokenValid",
                "Dimensions": [{"Name": "service", "Value": "token-monitor"}],
                "Timestamp": datetime.now(UTC) - timedelta(minutes=minutes),
                "Value": value,
            }
            for value in values
        ],
    )


def check(cloud: Cloud) -> tuple[str, dict[str, Any]]:
    """HealthStatus and HealthReport."""
    ssm = cloud.client("ssm")
    key = ssm.start_automation_execution(DocumentName=CHECK)["AutomationExecutionId"]
    Post(cloud).until(lambda: cloud.automation.under_way == 0)
    answer = ssm.get_automation_execution(AutomationExecutionId=key)
    outputs = answer["AutomationExecution"]["Outputs"]
    (report,), (status,) = (outputs[f"CheckHealth.Health{name}"] for name in ("Report", "Status"))
    return status, json.loads(report)


def issues(report: dict[str, Any], *words: str) -> list[str]:
    return [issue for issue in report["issues"] if all(word in issue for word in words)]


def test_token_checks(post: Post) -> None:
    """The last check counts, and a renewed token is well at once."""
    checked(post, 240, 1)
    _, report = check(post.cloud)
    assert issues(report, "No Gmail token was checked in the last 3 h")
    assert report["gmailToken"] == {"valid": None}
    checked(post, 100, 1, 0)
    status, report = check(post.cloud)
    assert status == "UNHEALTHY"
    assert issues(report, "A Gmail token is refused by Google")
    assert report["gmailToken"]["valid"] is False
    checked(post, 20, 1, 1)
    _, report = check(post.cloud)
    assert not issues(report, "oken")
    assert report["gmailToken"]["valid"] is True


def test_healthy(post: Post) -> None:
    checked(post, 1, 1)
    status, report = check(post.cloud)
    assert report["issues"] == []
    assert status == "HEALTHY"
    assert (report["environment"], report["region"], report["account"]) == ("test", REGION, ACCOUNT)
    assert [queue["name"] for queue in report["deadLetters"]] == [
        "ses-email-input-dlq-test",
        "ses-gmail-forwarder-dlq-test",
        "ses-bouncer-dlq-test",
    ]
    assert report["pipe"] == {
        "name": "ses-email-router-test",
        "state": "RUNNING",
        "desiredState": "RUNNING",
    }


def test_paused_pipe_and_waiting_mail(post: Post) -> None:
    post.cloud.pipe.pause()
    recipient = post.address("store")
    post.send(recipient)
    post.send(recipient)
    _, report = check(post.cloud)
    assert not issues(report, "The oldest message")  # the pause says it all
    (paused,) = issues(report, "Pipe ses-email-router-test is paused", "10 days")
    until = datetime.fromisoformat(paused.split("mail keeps until ")[1].split(",")[0])
    # The oldest message counts, and the embedded cloud's messages age faster.
    assert timedelta(days=9) < until - datetime.now(UTC) <= timedelta(days=10)
    queue = report["inputQueue"]
    assert (queue["visible"], queue["inFlight"]) == (2, 0)
    assert report["pipe"]["desiredState"] == "STOPPED"


def test_old_message(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    post.cloud.pipe.pause()
    post.send(post.address("store"))
    post.until(lambda: (check(post.cloud)[1]["inputQueue"]["oldestSeconds"] or 0) > 300)
    # As if the pipe ran and could not keep up.
    stopped = moto_pipes.pipes_backends[ACCOUNT][REGION].pipes["ses-email-router-test"]
    slow = copy.copy(stopped)
    slow.desired_state = "RUNNING"
    monkeypatch.setattr(moto_pipes.EventBridgePipesBackend, "describe_pipe", lambda *_, name: slow)
    _, report = check(post.cloud)
    assert issues(report, "The oldest message in ses-email-input-test is")


def test_dead_letters_and_failed_executions(post: Post) -> None:
    before = check(post.cloud)[1]["failedExecutions"]["last24h"]
    message_id = post.send(post.address("forward-to-gmail", post.mailbox(False)))
    post.cloud.wait_idle()
    # In flight, as an operator who looks at a letter makes it.
    post.cloud.client("sqs").receive_message(
        QueueUrl=post.cloud.resource("GmailForwarderDlq"), VisibilityTimeout=1
    )
    status, report = check(post.cloud)
    assert status == "UNHEALTHY"
    assert issues(report, "ses-gmail-forwarder-dlq-test holds", "Dead letters in the forwarder DLQ")
    assert report["failedExecutions"]["last24h"] == before + 1
    assert report["failedExecutions"]["newest"][0] == {"name": message_id, "status": "FAILED"}
    assert report["failedExecutions"]["unparked"] == []
    names = {execution["name"] for execution in report["failedExecutions"]["newest"]}
    assert len(names) == min(5, before + 1)


@pytest.mark.parametrize(
    ("action", "issue"),
    [
        ("sqs:GetQueueAttributes", "Queue ses-email-input-test cannot be read"),
        ("cloudwatch:GetMetricData", "Metrics cannot be read"),
        ("cloudwatch:DescribeAlarms", "Alarms cannot be read"),
        ("ses:DescribeActiveReceiptRuleSet", "Active receipt rule set cannot be read"),
        ("dynamodb:BatchGetItem", "Marks of failed executions cannot be read"),
        ("pipes:DescribePipe", "Pipe ses-email-router-test cannot be read"),
        ("states:ListExecutions", "Failed executions cannot be read"),
        ("states:ListExecutions", "Running executions cannot be read"),
    ],
)
def test_call_that_fails_is_an_issue(
    post: Post, monkeypatch: pytest.MonkeyPatch, action: str, issue: str
) -> None:
    post.send(post.address("forward-to-gmail", post.mailbox(False)))  # fails, so it has a mark
    post.cloud.wait_idle()
    allowed = post.cloud.automation.statements

    def without(arn: str) -> list[dict[str, Any]]:
        return [
            {**s, "Action": [a for a in as_list(s["Action"]) if a != action]} for s in allowed(arn)
        ]

    monkeypatch.setattr(post.cloud.automation, "statements", without)
    status, report = check(post.cloud)
    assert status == "UNHEALTHY"
    assert issues(report, issue, "AccessDenied")
    # The rest is there.
    assert set(report) == {
        "at", "environment", "region", "account", "receiptRule", "inputQueue", "pipe",
        "deadLetters", "runningExecutions", "failedExecutions", "gmailToken", "alarms", "issues",
    }  # fmt: skip
    assert len(report["deadLetters"]) == 3


def test_pipe_that_does_not_run(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """On AWS a pipe can fail to start; the embedded one cannot."""
    monkeypatch.setattr(moto_pipes.Pipe, "current_state", "START_FAILED")
    _, report = check(post.cloud)
    assert issues(report, "Pipe ses-email-router-test is START_FAILED and should be RUNNING")


def test_script_needs_no_clock_but_the_walls(post: Post) -> None:
    """AWS's own time stamps are compared with it, so a faster clock would be wrong."""
    content = json.loads(post.cloud.client("ssm").get_document(Name=CHECK)["Content"])
    assert "import time" not in content["mainSteps"][0]["inputs"]["Script"]
    assert callable(script(content))


RUNBOOK = Path(__file__).parents[2] / "runbooks/OPERATIONS.md"


@pytest.mark.skipif(not RUNBOOK.exists(), reason="the runbook comes later")
def test_sections_that_issues_name_are_in_the_runbook(post: Post) -> None:
    content = json.loads(post.cloud.client("ssm").get_document(Name=CHECK)["Content"])
    tree = ast.parse(content["mainSteps"][0]["inputs"]["Script"])
    named = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".issue")
        if isinstance(node.args[1], ast.Constant)
    }
    (by_queue,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEAD_LETTERS"
    )
    named.update(by_queue)
    headings = {line.lstrip("# ") for line in RUNBOOK.read_text().splitlines() if line[:1] == "#"}
    assert len(named) >= 7
    assert named <= headings
