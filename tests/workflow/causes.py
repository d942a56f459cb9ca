"""What may happen to the embedded cloud, for the tests of what operators see of it."""

import os
import signal
from datetime import UTC, datetime, timedelta

from local.google import Fault
from local.metrics import Reading
from tests.template.monitoring import Metric, Monitoring

from .conftest import ROOT
from .kit import Post, email

PARAMETERS = {"HighVolumePerHour": "30"}
MONITORING = Monitoring(
    ROOT,
    {
        "Environment": "test",
        "AlarmEmail": "",
        "HighVolumePerHour": 30,
        "RunbookUrl": "runbooks/OPERATIONS.md",
    },
)
TOKEN_INVALID = "ses-mail-gmail-token-invalid"


class Stage:
    """The cloud, with what a cause needs beyond the kit."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.cloud = post.cloud
        self.seen: set[Metric] = set()

    def alarms(self, reading: Reading = Reading(), **later: float) -> set[str]:  # noqa: B008
        """Names without the environment, now or so much later."""
        at = datetime.now(UTC) + timedelta(**later)
        return {name.removesuffix("-test") for name in self.cloud.metrics.alarms(at, reading)}

    def alarms_late(self) -> set[str]:
        """The same, seen by somebody for whom all metrics are 15 minutes late."""
        quarter = timedelta(minutes=15)
        return self.alarms(Reading(late=quarter, extra=0), minutes=15)

    def passed(self, **ago: float) -> None:
        """Whatever was measured by now happened that long ago."""
        self.cloud.metrics.collect(datetime.now(UTC) - timedelta(**ago))

    def forget(self) -> None:
        """Start anew, with every metric noted that there was."""
        for datum in self.cloud.metrics.forget():
            ((dimension, value),) = ((d.name, d.value) for d in datum.dimensions)
            self.seen.add(Metric(datum.namespace, datum.name, dimension, value, ""))

    def put(self, namespace: str, name: str, dimension: str, value: str) -> None:
        """A metric that only AWS publishes."""
        self.cloud.client("cloudwatch").put_metric_data(
            Namespace=namespace,
            MetricData=[
                {
                    "MetricName": name,
                    "Dimensions": [{"Name": dimension, "Value": value}],
                    "Value": 1,
                }
            ],
        )


def nothing_is_wrong(stage: Stage) -> None:
    post = stage.post
    forwarded, _ = post.forwarded()
    sent = [
        post.send(forwarded),
        post.send(forwarded, verdicts={"spam": "FAIL"}),
        post.send(post.address("bounce")),
        post.send(post.address("bounce"), sender=""),
        post.send(post.address("store"), post.address("drop")),
        post.send(forwarded, verdicts={"virus": "FAIL"}),
    ]
    for message_id in sent:
        post.delivered(message_id)
    post.cloud.publish(post.cloud.notification(sent[0]))
    post.queue({"mail": {"messageId": "AMAZON_SES_SETUP_NOTIFICATION"}, "receipt": {}})
    post.cloud.wait_idle()


def one_temporary_error(stage: Stage) -> None:
    recipient, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="start", mailbox=mailbox))
    stage.post.delivered(stage.post.send(recipient))


def a_mailbox_without_credentials(stage: Stage) -> None:
    mailbox = stage.post.mailbox(credentials=False)
    stage.post.dead_lettered(stage.post.send(stage.post.address("forward-to-gmail", mailbox)))


def somebody_peeks_at_a_dead_letter(stage: Stage) -> None:
    a_mailbox_without_credentials(stage)
    sqs, url = stage.cloud.client("sqs"), stage.cloud.resource("GmailForwarderDlq")
    (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=300)["Messages"]
    stage.forget()  # all that was measured before
    raised = {"ses-gmail-forwarder-dlq-messages", TOKEN_INVALID}
    assert stage.alarms() == stage.alarms_late() == raised
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    # Over when the runbook says, which is 20 minutes: an empty queue is measured each minute.
    for minute in range(1, 22):
        stage.passed(minutes=-minute)
    assert stage.alarms(minutes=19) == raised
    assert stage.alarms(minutes=21) == {TOKEN_INVALID}
    stage.forget()


def ses_refuses_a_bounce(stage: Stage) -> None:
    stage.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    stage.post.dead_lettered(stage.post.send(stage.post.address("bounce")))


def a_message_that_is_no_notification(stage: Stage) -> None:
    stage.post.queue("hello")
    stage.cloud.wait_idle()


def an_email_that_is_not_in_the_bucket(stage: Stage) -> None:
    notification = stage.post.store(stage.post.address("store"))
    action = notification["receipt"]["action"]
    bucket, key = action["bucketName"], action["objectKey"]
    stage.cloud.client("s3").delete_object(Bucket=bucket, Key=key)
    stage.cloud.publish(notification)
    stage.post.dead_lettered(notification["mail"]["messageId"])


def the_table_refuses_once(stage: Stage) -> None:
    stage.cloud.gate.refuse("dynamodb:BatchGetItem", "AccessDeniedException", times=1)
    stage.post.delivered(stage.post.send(stage.post.address("store")))


def a_malformed_rule(stage: Stage) -> None:
    stage.post.dead_lettered(stage.post.send(stage.post.address("typo")))


def the_starter_is_killed(stage: Stage) -> None:
    def idle() -> list[int]:
        return stage.cloud.runtime.idle("ses-mail-starter-test")

    # The warmest one, which takes the next batch, and stands still until it has it.
    warmest = idle()[-1]
    os.kill(warmest, signal.SIGSTOP)

    message_id = stage.post.send(stage.post.address("store"))
    stage.post.until(lambda: warmest not in idle())
    os.kill(warmest, signal.SIGKILL)
    stage.post.delivered(message_id)


def executions_cannot_be_started(stage: Stage) -> None:
    stage.cloud.gate.refuse("stepfunctions:StartExecution", "AccessDeniedException", times=3)
    stage.post.delivered(stage.post.send(stage.post.address("store")))


def the_pipe_stands_still(stage: Stage) -> None:
    stage.cloud.pipe.pause()
    message_id = stage.post.send(stage.post.address("store"))
    stage.post.until(lambda: "ses-email-input-queue-age" in stage.alarms())
    stage.cloud.pipe.resume()
    stage.post.delivered(message_id)


def nobody_has_a_rule(stage: Stage) -> None:
    stage.post.delivered(stage.post.send("nobody@example.com"))


def an_email_goes_round(stage: Stage) -> None:
    stage.post.delivered(stage.post.send(stage.post.address("store"), raw=email(26)))


def a_surge_of_forged_senders(stage: Stage) -> None:
    recipient = stage.post.address("bounce")
    for _ in range(50):
        stage.post.send(recipient, sender="")
    stage.cloud.wait_idle(240)


def abort(stage: Stage) -> None:
    """Abort an execution that waits for a further attempt; nobody sweeps yet."""
    recipient, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="start", mailbox=mailbox, times=None))
    message_id = stage.post.send(recipient)
    failing = {"errorType": "GmailTemporaryError"}
    stage.post.until(
        lambda: any(
            line["messageId"] == message_id and failing.items() <= line.items()
            for line in stage.cloud.logs("gmail-forwarder")
            if "messageId" in line
        )
    )
    (execution,) = stage.cloud.executions(message_id)
    stage.cloud.client("stepfunctions").stop_execution(executionArn=execution["executionArn"])
    stage.cloud.wait_idle()  # an attempt under way fails too
    stage.cloud.google.faults.clear()


def an_execution_is_aborted(stage: Stage) -> None:
    abort(stage)
    stage.cloud.events.tick()


def an_aborted_execution_cannot_be_looked_at(stage: Stage) -> None:
    abort(stage)
    stage.cloud.gate.refuse("stepfunctions:DescribeExecution", "AccessDeniedException", times=1)
    stage.cloud.events.tick()


def an_old_email_is_still_being_retried(stage: Stage) -> None:
    recipient, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="start", mailbox=mailbox))
    two_hours_ago = stage.cloud.now() - 2 * 3600
    stage.post.delivered(stage.post.send(recipient, timestamp=two_hours_ago))


def the_forwarder_fails_for_half_an_hour(stage: Stage) -> None:
    mailbox = stage.post.mailbox(credentials=False)
    recipient = stage.post.address("forward-to-gmail", mailbox)
    for _ in range(10):
        stage.post.send(recipient)
    stage.cloud.wait_idle(120)
    stage.passed(minutes=20)
    assert "ses-mail-lambda-gmail-forwarder-errors" not in stage.alarms()
    for _ in range(10):
        stage.post.send(recipient)
    stage.cloud.wait_idle(120)


def a_token_is_revoked(stage: Stage) -> None:
    _, mailbox = stage.post.forwarded()
    stage.cloud.google.revoke(mailbox)
    stage.cloud.events.tick()
    stage.cloud.add_mailbox(mailbox)


def the_token_monitor_is_silent(stage: Stage) -> None:
    pass


def google_does_not_answer_the_token_monitor(stage: Stage) -> None:
    _, mailbox = stage.post.forwarded()
    stage.cloud.google.faults.append(Fault(on="token", mailbox=mailbox, times=None))
    stage.cloud.events.tick()


def ses_gives_up(stage: Stage) -> None:
    stage.put("AWS/SES", "PublishExpired", "RuleName", "ses-mail-test")


def a_dead_letter_lies_for_three_days(stage: Stage) -> None:
    a_message_that_is_no_notification(stage)
    for hour in range(69, 1, -1):
        stage.passed(hours=hour)
    assert "ses-mail-dlq-age" not in stage.alarms(), "not yet three days"
    stage.passed(hours=1)
    stage.cloud.events.tick()
