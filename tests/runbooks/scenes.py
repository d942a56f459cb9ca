"""States of the cloud that a runbook's section assumes, and looks at what became of them."""

import contextlib
import itertools
import json
import time
from typing import Any

from local.google import Fault
from tests.workflow.kit import DLQS

from .blocks import Ran
from .cases import World

ADDRESS = "support@example.com"
MAILBOX = "your-email@gmail.com"
NEW = "new-email@gmail.com"
_numbers = itertools.count(4711)


def send(world: World, recipient: str = ADDRESS, received: int = 0, **options: Any) -> str:
    """Send an email through to its end; its id becomes the shell's ID."""
    world.subject = f"Invoice {next(_numbers)}."
    raw = (
        "Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n" * received
        + f"From: Zoe <zoe@elsewhere.example>\r\nTo: {recipient}\r\n"
        + f"Subject: {world.subject}\r\n\r\nHello\r\n"
    )
    message_id = world.cloud.send(raw.encode(), world.post.sender(), [recipient], **options)
    world.cloud.wait_idle()
    world.variables["ID"] = message_id
    return message_id


def mailbox(world: World, address: str = MAILBOX) -> None:
    """A mailbox whose credentials are the default ones."""
    world.cloud.add_mailbox(address, default=True)


def rule(world: World) -> None:
    """A rule that forwards to a mailbox."""
    mailbox(world)
    world.cloud.put_rule(ADDRESS, "forward-to-gmail", MAILBOX)


def rejected(world: World) -> None:
    """A dead letter whose cause is over: Gmail refused the email once."""
    rule(world)
    world.cloud.google.faults.append(Fault(on="start", status=400, reason="invalid"))
    send(world)
    assert_letter(world, "GmailForwarderDlq", "GmailRejectedError")


def token_revoked(world: World) -> None:
    """A dead letter because of the token, and a new token in the current folder."""
    rule(world)
    world.cloud.google.revoke(MAILBOX)
    send(world)
    assert_letter(world, "GmailForwarderDlq", "GmailTokenError")
    renewable(world)


def renewable(world: World) -> None:
    """What it takes to renew a token: its owner and the OAuth client, or a new token in a file."""
    google = world.cloud.google
    google.person = MAILBOX
    for name, content in (
        ("client_secret.json", google.add_client()),
        ("token.json", google.add_mailbox(MAILBOX)),
    ):
        (world.terminal.folder / name).write_text(json.dumps(content))


def assert_letter(world: World, queue: str, error: str) -> None:
    """There is one letter in a dead-letter queue, because of that error."""
    found = [body["failure"] for body in world.cloud.dead_letters(queue)]
    assert [failure["error"] for failure in found] == [error], found


def copies(world: World, address: str = MAILBOX) -> int:
    """How many copies of the email that was sent last lie in the mailbox."""
    messages = world.cloud.google.messages(address)
    return sum(world.subject.encode() in message.raw for message in messages)


def automation_succeeds(world: World, ran: Ran) -> dict[str, list[str]]:
    """Wait for the automation whose id the block printed; its outputs."""
    printed = json.loads(ran.out[: ran.out.index("}") + 1])
    return outputs_of(world, printed["AutomationExecutionId"])


def outputs_of(world: World, execution_id: str) -> dict[str, list[str]]:
    """What an automation, which succeeds, has found in the end."""
    ssm = world.cloud.client("ssm")
    found: dict[str, Any] = {}

    def ended() -> bool:
        nonlocal found
        found = ssm.get_automation_execution(AutomationExecutionId=execution_id)[
            "AutomationExecution"
        ]
        return found["AutomationExecutionStatus"] not in ("Pending", "InProgress")

    world.post.until(ended)
    assert found["AutomationExecutionStatus"] == "Success", found
    outputs: dict[str, list[str]] = found["Outputs"]
    return outputs


def no_rule(world: World) -> None:
    """An email for nobody: stored, with an alarm."""
    send(world, "someone@example.com")


def delivered(world: World) -> None:
    rule(world)
    send(world)
    assert copies(world) == 1, world.cloud.executions(world.variables["ID"])


def virus(world: World) -> None:
    rule(world)
    send(world, verdicts={"virus": "FAIL"})
    assert copies(world) == 0


def loop(world: World) -> None:
    rule(world)
    send(world, received=30)


def bounced(world: World) -> None:
    """By a rule that nobody wanted."""
    mailbox(world)
    world.cloud.put_rule("*", "bounce")
    send(world, "support@example.com")
    assert world.cloud.bounces[-1]["messageId"] == world.variables["ID"]


def suppressed(world: World) -> None:
    world.cloud.put_rule("*", "bounce")
    send(world, verdicts={"spf": "FAIL", "dmarc": "FAIL"}, dmarc_policy="none")


def bounce_refused(world: World) -> None:
    """As in the sandbox: SES sends nothing to strangers."""
    world.cloud.put_rule("*", "bounce")
    world.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    send(world)
    assert_letter(world, "BouncerDlq", "BounceRejectedError")


def rule_malformed(world: World) -> None:
    """A letter because of a rule that cannot be obeyed."""
    mailbox(world)
    world.cloud.put_rule(ADDRESS, "forward-to-gmail")
    send(world)
    assert_letter(world, "InputDlq", "InvalidRoutingRuleError")


def rule_fixed(world: World) -> None:
    """A letter whose cause is over."""
    rule_malformed(world)
    world.cloud.put_rule(ADDRESS, "forward-to-gmail", MAILBOX)


def died(world: World) -> None:
    """An execution that somebody stopped, and that the sweeper has parked."""
    rule(world)
    world.cloud.google.faults.append(Fault(on="start", status=503, times=None))
    world.variables["ID"] = world.cloud.send(b"Subject: x\r\n\r\nx", "zoe@x.example", [ADDRESS])
    client = world.cloud.client("stepfunctions")

    def running() -> list[Any]:
        found = world.cloud.executions(world.variables["ID"])
        return [e for e in found if e["status"] == "RUNNING"]

    world.post.until(lambda: bool(running()))
    (execution,) = running()
    client.stop_execution(executionArn=execution["executionArn"], error="Stopped", cause="by hand")
    world.post.until(lambda: bool(world.cloud.dead_letters("InputDlq")))


def limited_for_a_day(world: World) -> None:
    """A letter such as Gmail's limits leave after a day of retries, for which nobody waits here."""
    rejected(world)
    (letter,) = world.post.take("GmailForwarderDlq")
    error = {"DataType": "String", "StringValue": "GmailTemporaryError"}
    world.cloud.client("sqs").send_message(
        QueueUrl=world.cloud.resource("GmailForwarderDlq"),
        MessageBody=letter.text.replace("GmailRejectedError", "GmailTemporaryError"),
        MessageAttributes={"Error": error},
    )


def paused(world: World) -> None:
    """Mail waits behind a stopped pipe."""
    rule(world)
    world.cloud.pipe.pause()
    world.variables["ID"] = world.cloud.send(b"Subject: x\r\n\r\nx", "zoe@x.example", [ADDRESS])


def delayed(world: World) -> None:
    """An email that Gmail took at the second attempt."""
    rule(world)
    world.cloud.google.faults.append(Fault(on="start", status=503))
    send(world)


def router_error(world: World) -> None:
    log(world, "/aws/lambda/ses-mail-router-test", '{"level": "ERROR", "error": "throttled"}')


def mailbox_checked(world: World) -> None:
    """A token that the hourly check has looked at."""
    mailbox(world)
    group = "/aws/lambda/ses-mail-token-monitor-test"
    logs = world.cloud.client("logs")
    world.post.until(
        lambda: bool(
            logs.filter_log_events(logGroupName=group, filterPattern='"Token check"')["events"]
        )
    )


def redriven_once(world: World) -> None:
    """A redrive that has ended."""
    rejected(world)
    ssm = world.cloud.client("ssm")
    started = ssm.start_automation_execution(
        DocumentName="SESMail-DLQ-Redrive-test",
        Parameters={
            "DLQUrl": [world.cloud.resource("GmailForwarderDlq")],
            "SourceQueueUrl": [world.cloud.resource("InputQueue")],
        },
    )
    outputs_of(world, started["AutomationExecutionId"])


def rule_and_new_mailbox(world: World) -> None:
    rule(world)
    mailbox(world, NEW)


def log(world: World, group: str, message: str) -> None:
    """A line in a log group, of a kind that the embedded cloud has no cause to write by itself."""
    logs = world.cloud.client("logs")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_stream(logGroupName=group, logStreamName="test")
    event = {"timestamp": int(time.time() * 1000), "message": message}
    logs.put_log_events(logGroupName=group, logStreamName="test", logEvents=[event])


def forget_rules(world: World) -> None:
    """An empty routing table."""
    table = world.cloud.resource("RoutingTable")
    dynamodb = world.cloud.client("dynamodb")
    for item in dynamodb.scan(TableName=table)["Items"]:
        dynamodb.delete_item(TableName=table, Key={name: item[name] for name in ("PK", "SK")})


def empty_queues(world: World) -> None:
    """Letters in flight included, which a test has only peeked at."""
    for queue in DLQS:
        world.cloud.empty(queue)
