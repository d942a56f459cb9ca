"""`sesmail health`: what goes wrong in a first night is said in the right words, and is over as
soon as it is over."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from moto.ses.models import ses_backends

from local.google import Fault
from local.iam import ACCOUNT, REGION
from tests.workflow.kit import Post

from .conftest import Sesmail

RULE = "ses-mail-test"


@pytest.fixture
def calm(post: Post) -> Iterator[Post]:
    """Nothing happened today, and no mailbox has a token that was revoked."""
    ssm = post.cloud.client("ssm")
    pages = ssm.get_paginator("get_parameters_by_path")
    for page in pages.paginate(Path="/ses-mail/test/gmail-tokens/"):
        for parameter in page["Parameters"]:
            ssm.delete_parameter(Name=parameter["Name"])
    post.cloud.pass_time(days=30)
    post.mailbox()
    post.cloud.events.tick()  # the hourly checks
    post.cloud.wait_idle()
    return post


def issues(sesmail: Sesmail) -> list[str]:
    """What is wrong, which status and exit code must agree with."""
    ran = sesmail("health --json", code=None)
    found: list[str] = ran.json["report"]["issues"]
    assert (ran.json["status"], ran.code) == (("UNHEALTHY", 1) if found else ("HEALTHY", 0))
    return found


def test_healthy(calm: Post, sesmail: Sesmail) -> None:
    recipient, _ = calm.forwarded()
    calm.delivered(calm.send(recipient))
    shown = sesmail("health").out
    assert shown.startswith("HEALTHY at ")
    assert f": test in {REGION}, account {ACCOUNT}\n" in shown
    assert "•" not in shown
    report = sesmail("health --json").json["report"]
    assert report["receiptRule"] == {
        "name": RULE, "ruleSet": RULE, "active": RULE, "enabled": True
    }  # fmt: skip
    assert (report["alarms"], report["runningExecutions"]["count"]) == ([], 0)


def test_the_token_is_dead(calm: Post, sesmail: Sesmail) -> None:
    _recipient, mailbox, _message_id = calm.parked()
    calm.cloud.events.tick()
    calm.cloud.wait_idle()
    letters, token = issues(sesmail)
    assert "ses-gmail-forwarder-dlq-test holds 1 dead letters" in letters
    assert "A Gmail token is refused by Google" in token
    # Both alarms are listed, and neither is counted a second time.
    listed = {
        a["name"]: a["issue"] for a in sesmail("health --json", code=1).json["report"]["alarms"]
    }
    assert listed.items() >= {("ses-mail-gmail-token-invalid-test", False)}
    calm.cloud.pass_time(minutes=1)  # the metrics' grain
    calm.cloud.add_mailbox(mailbox)
    calm.cloud.events.tick()
    sesmail("dlq redrive forwarder --error GmailTokenError", code=None)  # or the monitor has
    calm.cloud.wait_idle()
    assert calm.copies(mailbox) == 1
    assert issues(sesmail) == []
    # Its alarm looks back over the whole hour.
    assert "ses-mail-gmail-token-invalid-test (by itself not an issue" in sesmail("health").out


def test_gmail_is_down_for_an_hour(calm: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = calm.forwarded()
    down = Fault(on="start", mailbox=mailbox, times=None)
    calm.cloud.google.faults.append(down)
    message_id = calm.send(recipient)
    # What the alarm reads is an hour old by then; health sees the email sooner.
    calm.until(lambda: "ses-mail-delivery-delayed-test" in calm.cloud.metrics.alarms())
    (delayed,) = issues(sesmail)
    assert "Deliveries are delayed: 1 emails are being retried, the oldest since" in delayed
    assert message_id in sesmail("health", code=1).out
    calm.cloud.google.faults.remove(down)
    calm.cloud.wait_idle()
    assert calm.copies(mailbox) == 1
    # The alarm looks back over three hours; nothing is being retried any more.
    assert "ses-mail-delivery-delayed-test" in calm.cloud.metrics.alarms()
    assert issues(sesmail) == []


def test_a_malformed_rule(calm: Post, sesmail: Sesmail) -> None:
    recipient = calm.address("typo")
    calm.send(recipient)
    calm.cloud.wait_idle()
    (letters,) = issues(sesmail)
    assert "ses-email-input-dlq-test holds 1 dead letters and 0 in flight" in letters
    calm.cloud.put_rule(recipient, "store")
    sesmail("dlq redrive input --error InvalidRoutingRuleError")
    calm.cloud.wait_idle()
    # Its execution failed within this hour, and that is settled.
    assert sesmail("health --json").json["report"]["failedExecutions"]["last24h"] == 1
    assert issues(sesmail) == []


def test_the_pipe_is_stopped(calm: Post, sesmail: Sesmail) -> None:
    calm.cloud.pipe.pause()
    message_id = calm.send(calm.address("store"))
    calm.until(lambda: "ses-email-input-queue-age-test" in calm.cloud.metrics.alarms())
    (paused,) = issues(sesmail)
    assert "Pipe ses-email-router-test is paused and 1 emails wait: mail keeps until " in paused
    sesmail("resume")
    calm.delivered(message_id)
    # The age of the oldest message is minutes old by now, and so is its alarm.
    assert "ses-email-input-queue-age-test" in calm.cloud.metrics.alarms()
    assert issues(sesmail) == []


def test_dynamodb_throttles(calm: Post, sesmail: Sesmail) -> None:
    table = calm.cloud.resource("RoutingTable")
    recipient = calm.address("store")
    calm.cloud.gate.refuse(
        "dynamodb:BatchGetItem",
        "ProvisionedThroughputExceededException",
        lambda params: table in params["RequestItems"],
    )
    message_id = calm.send(recipient)
    calm.until(lambda: "ses-mail-lambda-router-errors-test" in calm.cloud.metrics.alarms())
    router = [issue for issue in issues(sesmail) if "outer" in issue]
    assert len(router) == 1
    assert "Alarm ses-mail-lambda-router-errors-test since " in router[0]
    assert "OPERATIONS.md#router-errors" in router[0]
    calm.dead_lettered(message_id)
    calm.cloud.gate.open()
    assert any("ses-email-input-dlq-test holds 1" in issue for issue in issues(sesmail))
    sesmail("dlq redrive input")
    calm.cloud.wait_idle()
    # Nobody but the alarm knows of the router's errors, and it looks back over two
    # periods more than its four, where data points are missing.
    (alarm,) = issues(sesmail)
    assert "ses-mail-lambda-router-errors-test" in alarm
    calm.cloud.pass_time(minutes=31)
    assert issues(sesmail) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("none", "No receipt rule set is active: ses-mail-test should be"),
        ("another", "Receipt rule set another is active instead of ses-mail-test"),
        ("removed", "The active receipt rule set ses-mail-test has no rule ses-mail-test"),
        ("disabled", "Receipt rule ses-mail-test is disabled"),
    ],
)
def test_no_mail_comes_in(calm: Post, sesmail: Sesmail, change: str, words: str) -> None:
    """SES obeys the active rule set of the region only, and bounces what no rule takes."""
    ses = calm.cloud.client("ses")
    rule = ses.describe_receipt_rule(RuleSetName=RULE, RuleName=RULE)["Rule"]
    try:
        if change == "none":
            ses.set_active_receipt_rule_set()
        elif change == "another":
            ses.create_receipt_rule_set(RuleSetName="another")
            ses.create_receipt_rule(RuleSetName="another", Rule=rule)
            ses.set_active_receipt_rule_set(RuleSetName="another")
        elif change == "removed":
            ses_backends[ACCOUNT][REGION].receipt_rule_set[RULE].rules.clear()
        else:
            ses.update_receipt_rule(RuleSetName=RULE, Rule={**rule, "Enabled": False})
        (problem,) = issues(sesmail)
        assert problem == f"{words}, so no mail comes in. Runbook: No mail comes in"
    finally:
        ses.set_active_receipt_rule_set(RuleSetName=RULE)
        if change == "removed":
            ses.create_receipt_rule(RuleSetName=RULE, Rule=rule)
        ses.update_receipt_rule(RuleSetName=RULE, Rule=rule)
    assert issues(sesmail) == []


def test_an_execution_that_nobody_parked(calm: Post, sesmail: Sesmail) -> None:
    """Aborted by hand: no Catch reaches it, so its email is in no queue before the sweeper came."""
    recipient, mailbox = calm.forwarded()
    calm.cloud.google.faults.append(Fault(on="start", mailbox=mailbox, times=None))
    message_id = calm.send(recipient)
    calm.until(lambda: bool(calm.cloud.executions(message_id)))
    (execution,) = calm.cloud.executions(message_id)
    calm.cloud.client("stepfunctions").stop_execution(executionArn=execution["executionArn"])
    calm.cloud.wait_idle()
    (died,) = issues(sesmail)
    assert died.startswith("1 executions died, and their emails are in no queue yet")
    assert died.endswith("Runbook: Executions died uncaught")
    calm.cloud.pass_time(hours=2)
    calm.cloud.events.tick()
    (letters,) = issues(sesmail)
    assert "ses-email-input-dlq-test holds 1" in letters


def test_an_alarm_that_only_informs(calm: Post, sesmail: Sesmail) -> None:
    calm.cloud.client("cloudwatch").put_metric_data(
        Namespace="SESMail/test",
        MetricData=[
            {
                "MetricName": "StartsStarted",
                "Dimensions": [{"Name": "service", "Value": "starter"}],
                "Timestamp": datetime.now(UTC),
                "Value": 1_000_000,
            }
        ],
    )
    assert issues(sesmail) == []
    assert "ses-mail-high-email-volume-test" in sesmail("health").out
