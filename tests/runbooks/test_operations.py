"""runbooks/OPERATIONS.md: every command in it is run, in the state that its section is about."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from . import scenes
from .blocks import Block, Ran, blocks
from .cases import Case, World, run

ROOT = Path(__file__).parents[2]
BLOCKS = blocks(ROOT / "runbooks" / "OPERATIONS.md")


def copies(count: int, address: str = scenes.MAILBOX) -> Callable[[World, Ran], None]:
    """So many copies of the email lie in the mailbox in the end."""

    def check(world: World, ran: Ran) -> None:
        world.post.until(lambda: scenes.copies(world, address) >= count)
        world.cloud.wait_idle()
        assert scenes.copies(world, address) == count

    return check


def no_letters(*queues: str) -> Callable[[World, Ran], None]:
    def check(world: World, ran: Ran) -> None:
        assert [queue for queue in queues if world.cloud.dead_letters(queue)] == []

    return check


def all_of(*checks: Callable[[World, Ran], None]) -> Callable[[World, Ran], None]:
    def check(world: World, ran: Ran) -> None:
        for one in checks:
            one(world, ran)

    return check


def automation_redrives(world: World, ran: Ran) -> None:
    assert scenes.automation_succeeds(world, ran)["Redrive.RedrivenCount"] == ["1"]


def next_email_goes_to(address: str) -> Callable[[World, Ran], None]:
    def check(world: World, ran: Ran) -> None:
        scenes.send(world)
        assert scenes.copies(world, address) == 1

    return check


def next_email_is_stored(world: World, ran: Ran) -> None:
    scenes.send(world)
    assert scenes.copies(world) == 0
    (execution,) = world.cloud.executions(world.variables["ID"])
    assert execution["status"] == "SUCCEEDED"


def pipe_is(wanted: str) -> Callable[[World, Ran], None]:
    def check(world: World, ran: Ran) -> None:
        pipe = world.cloud.client("pipes").describe_pipe(Name="ses-email-router-test")
        assert pipe["DesiredState"] == wanted

    return check


def waiting_mail_arrives(world: World, ran: Ran) -> None:
    pipe_is("RUNNING")(world, ran)
    world.post.until(lambda: bool(world.cloud.executions(world.variables["ID"])))


def kept_in_a_file(world: World, ran: Ran) -> None:
    (file,) = (world.terminal.folder / ".local/state/sesmail").glob("discarded-*.jsonl")
    assert world.variables["ID"] in file.read_text()


def pipe_failure(world: World) -> None:
    scenes.log(world, "/aws/vendedlogs/pipes/test/ses-email-router", "TargetInvocationFailed")


def started_badly(world: World) -> None:
    scenes.log(world, "/aws/lambda/ses-mail-starter-test", '{"message": "Start failed"}')


def swept(world: World) -> None:
    scenes.log(world, "/aws/lambda/ses-mail-sweeper-test", '{"level": "ERROR"}')


def group_deleted(world: World) -> None:
    world.cloud.client("logs").delete_log_group(logGroupName="/aws/lambda/ses-mail-router-test")


def group_is_used(world: World, ran: Ran) -> None:
    scenes.send(world)
    found = world.cloud.client("logs").filter_log_events(
        logGroupName="/aws/lambda/ses-mail-router-test",
        filterPattern=f'"{world.variables["ID"]}"',
    )
    assert found["events"]


def rules_in_a_file(world: World) -> None:
    scenes.rule(world)
    exported = world.terminal.run("sesmail routes export rules.jsonl", world.variables)
    exported.check()
    scenes.forget_rules(world)


def restored_table(world: World) -> None:
    """What the block before it leaves behind: the restored table, and an original without rules."""
    scenes.rule(world)
    (block,) = (b for b in BLOCKS if b.key == ("Restore the routing table", 2))
    world.terminal.run(block.text, world.variables).check()
    scenes.forget_rules(world)


def restored_table_is_there(world: World, ran: Ran) -> None:
    dynamodb = world.cloud.client("dynamodb")
    copy = "ses-email-routing-test-restored"
    assert dynamodb.scan(TableName=copy)["Items"]
    dynamodb.delete_table(TableName=copy)


CASES = {
    ("Operations", 1): Case(),
    ("First", 1): Case(
        ("UNHEALTHY", r"ses-gmail-forwarder-dlq-test holds 1"), scenes.rejected, code=1
    ),
    ("First", 2): Case(
        (r"ses-gmail-forwarder-dlq-messages-test\t.*OPERATIONS.md#dead-letters-in-the-forwarder",),
        scenes.rejected,
    ),
    ("How long an alarm lasts", 1): Case((r'"ses-mail-dlq-age-test",\s+70,\s+72',)),
    ("Somebody misses an email", 1): Case((r"Invoice \d+", scenes.ADDRESS), scenes.delivered),
    ("Somebody misses an email", 2): Case(("delivered", scenes.MAILBOX), scenes.delivered),
    ("Somebody misses an email", 3): Case(
        ('"SUCCEEDED"', r"\tForward to Gmail\n", r"\tDelivered\n"), scenes.delivered
    ),
    ("One more copy", 1): Case(("SUCCEEDED",), scenes.delivered, copies(2)),
    ("A dropped email is wanted", 1): Case(("SUCCEEDED",), scenes.virus, copies(1)),
    ("Look", 1): Case(("GmailRejectedError 1", scenes.ADDRESS), scenes.rejected),
    ("Look", 2): Case(
        ('"ApproximateNumberOfMessages": "1"', "GmailRejectedError", "matchedRule"),
        scenes.rejected,
    ),
    ("Redrive", 1): Case((r"redriven\s+1\n", r"remaining\s+0\n"), scenes.rejected, copies(1)),
    ("Redrive", 2): Case(
        ("AutomationExecutionId",), scenes.rejected, all_of(automation_redrives, copies(1))
    ),
    ("Discard", 1): Case(
        ("Discarded 1 of 1",),
        scenes.rejected,
        all_of(no_letters("GmailForwarderDlq"), kept_in_a_file),
    ),
    ("Dead letters in the input DLQ", 1): Case(("InvalidRoutingRuleError",), scenes.rule_malformed),
    ("Dead letters in the input DLQ", 2): Case((scenes.ADDRESS,), scenes.rule_malformed, code=1),
    ("Dead letters in the input DLQ", 3): Case(
        (scenes.MAILBOX, r"redriven\s+1\n"), scenes.rule_malformed, copies(1)
    ),
    ("Dead letters in the input DLQ", 4): Case((r"ses-email-input-dlq-test\s+0",)),
    ("Dead letters in the forwarder DLQ", 1): Case(("GmailTokenError 1",), scenes.token_revoked),
    ("Dead letters in the bouncer DLQ", 1): Case(("BounceRejectedError",), scenes.bounce_refused),
    ("Dead letters left lying", 1): Case(("GmailRejectedError 1",), scenes.rejected),
    ("Gmail token invalid", 1): Case(
        (r"gmail-token\s", "invalid_grant"), scenes.token_revoked, code=1
    ),
    ("Gmail token invalid", 2): Case(
        ("/ses-mail/test/gmail-token",),
        scenes.token_revoked,
        all_of(copies(1), no_letters("GmailForwarderDlq")),
    ),
    ("Gmail token invalid", 3): Case(
        ("/ses-mail/test/gmail-token",),
        scenes.token_revoked,
        all_of(copies(1), no_letters("GmailForwarderDlq")),
    ),
    ("Gmail token invalid", 4): Case(
        ('"Version"',),
        scenes.token_revoked,
        all_of(copies(1), no_letters("GmailForwarderDlq")),
    ),
    ("Gmail token invalid", 5): Case(
        (r"\svalid", r"ses-gmail-forwarder-dlq-test\s+0"), scenes.mailbox
    ),
    ("Starter errors", 1): Case(('"service": *"starter"',), scenes.delivered),
    ("Fetcher errors", 1): Case(('"service": *"fetcher"',), scenes.delivered),
    ("Router errors", 1): Case(('"ACTIVE"', "level"), scenes.router_error),
    ("Router errors", 2): Case((r"redriven\s+1\n",), scenes.rule_fixed, copies(1)),
    ("Router errors", 3): Case((r"ses-email-input-dlq-test\s+0",)),
    ("Gmail forwarder errors", 1): Case(('"result": *"delivered"',), scenes.delivered),
    ("Bouncer errors", 1): Case(('"Enabled": true', "Max24HourSend")),
    ("Sweeper errors", 1): Case(("ERROR",), swept),
    ("Sweeper errors", 2): Case((r'{"swept": \[',), scenes.rejected),
    ("Token monitor errors", 1): Case((r"\svalid", "Token check"), scenes.mailbox_checked),
    ("High queue age", 1): Case(("is paused", "UNHEALTHY"), scenes.paused, code=1),
    ("High queue age", 2): Case(('"STOPPED"', "ConcurrentExecutions"), scenes.paused),
    ("EventBridge Pipes failures", 1): Case(
        ("ses-email-router-test", "TargetInvocationFailed"), pipe_failure
    ),
    ("EventBridge Pipes failures", 2): Case(("RUNNING",), scenes.paused, waiting_mail_arrives),
    ("EventBridge Pipes failures", 3): Case(("RUNNING",), scenes.paused, waiting_mail_arrives),
    ("Starts failed", 1): Case(("Start failed",), started_badly),
    ("No mail comes in", 1): Case(('"Enabled": true', '"ses-mail-test"')),
    ("High email volume", 1): Case((r"Invoice \d+",), scenes.delivered),
    ("SES gave up publishing", 1): Case(
        ('"Enabled": true', "S3Action", r"Invoice \d+"), scenes.delivered
    ),
    ("Executions died uncaught", 1): Case(("ABORTED",), scenes.died),
    ("Unrouted email", 1): Case(("someone@example.com", "store"), scenes.no_rule),
    ("Mail loops", 1): Case((r'"reason": *"loop"',), scenes.loop),
    ("Deliveries delayed", 1): Case(("GmailTemporaryError",), scenes.delayed),
    ("Deliveries delayed", 2): Case(("delivered", scenes.MAILBOX), scenes.delayed),
    ("Bounces suppressed", 1): Case(('"result": *"suppressed"', '"dmarc"'), scenes.suppressed),
    ("Gmail's rate limit", 1): Case((r"redriven\s+1\n",), scenes.limited_for_a_day, copies(1)),
    ("SES sandbox", 1): Case((r"\d+\.0\n", '"Enabled": true')),
    ("Bounced by mistake", 1): Case(("store",), scenes.bounced, next_email_is_stored),
    ("Bounced by mistake", 2): Case(("SUCCEEDED",), scenes.bounced, copies(1)),
    ("A log group is gone", 1): Case(("/aws/lambda/ses-mail-router-test",)),
    ("A log group is gone", 2): Case((), group_deleted, group_is_used),
    ("Restore the routing table", 1): Case(
        (scenes.ADDRESS,), rules_in_a_file, next_email_goes_to(scenes.MAILBOX)
    ),
    ("Restore the routing table", 2): Case(
        ("ses-email-routing-test-restored",), scenes.rule, restored_table_is_there
    ),
    ("Restore the routing table", 3): Case((), restored_table, next_email_goes_to(scenes.MAILBOX)),
    ("Restore the routing table", 4): Case((scenes.ADDRESS,), scenes.rule),
    ("P1: no mail moves", 1): Case(("UNHEALTHY",), scenes.paused, code=1),
    ("Pausing", 1): Case((r"mail_keeps_until\s+20",), after=pipe_is("STOPPED")),
    ("Pausing", 2): Case(("STOPPED",), after=pipe_is("STOPPED")),
    ("Resuming", 1): Case(("RUNNING",), scenes.paused, waiting_mail_arrives),
    ("Resuming", 2): Case(("RUNNING",), scenes.paused, waiting_mail_arrives),
    ("Resuming", 3): Case(("UNHEALTHY", "is paused"), scenes.paused, code=1),
    ("Put back what was changed by hand", 1): Case(not_run="see the comment in the runbook"),
    ("Put back what was changed by hand", 2): Case(not_run="see the comment in the runbook"),
    ("Roll back", 1): Case(not_run="see the comment in the runbook"),
    ("SESMail-DLQ-Redrive-{env}", 1): Case(('"Success"',), scenes.redriven_once),
    ("SESMail-Queue-HealthCheck-{env}", 1): Case(("^Success\n", "HealthStatus", "HealthReport")),
    ("Monitoring and alerting", 1): Case((r'"Subscriptions": \[',)),
    ("Dashboard", 1): Case(("dashboard/ses-mail-dashboard-test",)),
    ("Saved queries", 1): Case(("ses-mail/test/email-end-to-end-trace",)),
    ("Saved queries", 2): Case(("Routing decision",), scenes.delivered),
    ("Add a rule", 1): Case((scenes.ADDRESS,), scenes.mailbox, next_email_goes_to(scenes.MAILBOX)),
    ("Add a rule", 2): Case((), scenes.mailbox, next_email_goes_to(scenes.MAILBOX)),
    ("Change a rule", 1): Case(
        ("new-email@gmail.com",), scenes.rule_and_new_mailbox, next_email_goes_to(scenes.NEW)
    ),
    ("Change a rule", 2): Case((), scenes.rule_and_new_mailbox, next_email_goes_to(scenes.NEW)),
    ("Disable a rule", 1): Case(("disabled",), scenes.rule, next_email_is_stored),
    ("Disable a rule", 2): Case((), scenes.rule, next_email_is_stored),
    ("Test a rule", 1): Case((scenes.ADDRESS, scenes.MAILBOX), scenes.rule),
    ("List and save the rules", 1): Case((scenes.ADDRESS, scenes.MAILBOX), scenes.rule),
    ("List and save the rules", 2): Case((scenes.ADDRESS, "forward-to-gmail"), scenes.rule),
}


@pytest.fixture
def variables(world: World) -> None:
    """What the first block of the page sets."""
    found = dict(re.findall(r"export (\w+)=(\S+)", BLOCKS[0].text))
    world.variables.update(found)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.usefixtures("variables")
def test_block(block: Block, world: World, record_property: Callable[[str, object], None]) -> None:
    record_property("runbook", "runbooks/OPERATIONS.md")
    run(block, CASES[block.key], world, {}, record_property)


def test_every_case_has_its_block() -> None:
    assert CASES.keys() == {block.key for block in BLOCKS}


def test_what_is_not_run_says_why() -> None:
    assert {b.key for b in BLOCKS if b.not_run} == {k for k, c in CASES.items() if c.not_run}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.usefixtures("variables")
def test_putting_back_is_what_the_aws_cli_takes(world: World, number: int) -> None:
    """Reads are answered by the embedded cloud, and what would be sent is checked against AWS's
    model."""
    (block,) = (b for b in BLOCKS if b.key == ("Put back what was changed by hand", number))
    waiters = re.findall(r"cloudformation wait ([a-z-]+)", block.text)
    names = world.cloud.client("cloudformation").waiter_names
    assert {waiter.replace("-", "_") for waiter in waiters} <= set(names)
    checked = (
        'aws() { case "$2" in wait) ;; '
        'describe-change-set) command aws "$@" --generate-cli-skeleton input ;; '
        '*-change-set) command aws "$@" --generate-cli-skeleton output ;; '
        '*) command aws "$@" ;; esac; }\n'
    )
    ran = world.terminal.run(checked + block.text, world.variables)
    ran.check()
    assert '"Id"' in ran.out or number == 2
