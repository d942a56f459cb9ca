"""The redrive document in the embedded cloud: however often it is run, each email arrives once."""

import functools
import json
import random
import time
from typing import Any

import pytest

from local.cloud import Cloud
from tests.workflow.kit import Post

REDRIVE = "SESMail-DLQ-Redrive-test"


@pytest.fixture
def post(cloud: Cloud) -> Any:
    """Nothing is redriven by itself meanwhile, and nothing is left behind."""
    cloud.events.paused = True
    yield Post(cloud)
    cloud.google.faults.clear()
    cloud.wait_idle()
    cloud.show("GmailForwarderDlq")
    Post(cloud).take()
    cloud.events.paused = False


def _start(post: Post, **parameters: object) -> str:
    urls = {
        "DLQUrl": post.cloud.resource("GmailForwarderDlq"),
        "SourceQueueUrl": post.cloud.resource("InputQueue"),
    }
    answer = post.cloud.client("ssm").start_automation_execution(
        DocumentName=REDRIVE,
        Parameters={name: [str(value)] for name, value in {**urls, **parameters}.items()},
    )
    return str(answer["AutomationExecutionId"])


def _outputs(post: Post, key: str) -> dict[str, str]:
    """Of an execution that succeeds, once it and what it caused has ended."""
    post.cloud.wait_idle(240)
    answer = post.cloud.client("ssm").get_automation_execution(AutomationExecutionId=key)
    execution = answer["AutomationExecution"]
    assert execution["AutomationExecutionStatus"] == "Success", execution["FailureMessage"]
    return {name.split(".")[1]: value for name, (value,) in execution["Outputs"].items()}


def _parked(post: Post, count: int) -> list[str]:
    """Mailboxes, each with one email that waits in the forwarder's queue because of its token; the
    tokens are mended by now."""
    addresses = [post.forwarded() for _ in range(count)]
    for recipient, mailbox in addresses:
        post.cloud.google.revoke(mailbox)
        post.send(recipient)
    post.cloud.wait_idle(240)
    for _, mailbox in addresses:
        post.cloud.add_mailbox(mailbox)
    assert len(post.cloud.dead_letters("GmailForwarderDlq")) == count
    return [mailbox for _, mailbox in addresses]


def _at_most(post: Post, letters: int) -> bool:
    return len(post.cloud.dead_letters("GmailForwarderDlq")) <= letters


def test_every_email_arrives_once_however_often_the_run_is_killed(post: Post) -> None:
    mailboxes = _parked(post, 16)
    sqs, url = post.cloud.client("sqs"), post.cloud.resource("GmailForwarderDlq")
    # What a run leaves that is struck between sending and deleting: the letter in both queues.
    for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=3)["Messages"]:
        post.queue(message["Body"])
    post.cloud.show("GmailForwarderDlq")
    chance = random.Random(5)
    ssm = post.cloud.client("ssm")
    for left in (15, 13, 10):
        key = _start(post, VelocityPerSecond=2)
        post.until(functools.partial(_at_most, post, left))
        time.sleep(chance.random() / 100)
        ssm.stop_automation_execution(AutomationExecutionId=key)
        post.cloud.show("GmailForwarderDlq")
    outputs = _outputs(post, _start(post))
    assert (outputs["FailedCount"], outputs["Remaining"]) == ("0", "0")
    assert [post.copies(mailbox) for mailbox in mailboxes] == [1] * 16
    assert post.take() == []


def test_two_runs_at_once(post: Post) -> None:
    mailboxes = _parked(post, 12)
    keys = [_start(post), _start(post)]
    outputs = [_outputs(post, key) for key in keys]
    assert sum(int(found["RedrivenCount"]) for found in outputs) == 12
    assert [post.copies(mailbox) for mailbox in mailboxes] == [1] * 12


def test_error_filter_takes_what_the_workflow_writes(post: Post) -> None:
    """The Error attribute is the class name, as Step Functions sees it."""
    (mailbox,) = _parked(post, 1)
    stays = post.address("forward-to-gmail", post.mailbox(False))
    post.send(stays)
    post.cloud.wait_idle()
    errors = [body["failure"]["error"] for body in post.cloud.dead_letters("GmailForwarderDlq")]
    assert errors == ["GmailTokenError", "GmailTokenError"]
    # One of another class, as it is parked for any other reason.
    body = {**post.cloud.dead_letters("GmailForwarderDlq")[0]}
    body["failure"] = {**body["failure"], "error": "GmailRejectedError"}
    post.cloud.client("sqs").send_message(
        QueueUrl=post.cloud.resource("GmailForwarderDlq"), MessageBody=json.dumps(body)
    )
    outputs = _outputs(post, _start(post, Error="GmailTokenError"))
    assert (outputs["RedrivenCount"], outputs["SkippedCount"]) == ("2", "1")
    assert post.copies(mailbox) == 1
    # The one without a token is back, and the other one never left.
    left = [body["failure"]["error"] for body in post.cloud.dead_letters("GmailForwarderDlq")]
    assert sorted(left) == ["GmailRejectedError", "GmailTokenError"]


def test_wrong_pair_of_the_former_runbook(post: Post) -> None:
    former = post.cloud.resource("InputQueue").replace("email-input", "gmail-forwarder")
    key = _start(post, SourceQueueUrl=former)
    post.cloud.wait_idle()
    answer = post.cloud.client("ssm").get_automation_execution(AutomationExecutionId=key)
    execution = answer["AutomationExecution"]
    assert execution["AutomationExecutionStatus"] == "Failed"
    assert "takes no dead letters: use ses-email-input-test" in execution["FailureMessage"]
