"""The runbook of the system that this one replaces: its commands work here too.

Where they cannot, CHANGES has what is different; runbooks/OPERATIONS.md gives the reasons.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from . import scenes
from .blocks import Block, Ran, blocks
from .cases import Case, World, run

SEED = Path(__file__).parent / "seed_operations_runbook.md"
BLOCKS = blocks(SEED)

# Name → (what the block says, what is run instead).
CHANGES = {
    "dead letters go back to the input queue": (
        "/ses-gmail-forwarder-test,",
        "/ses-email-input-test,",
    ),
    "`action` is a reserved word of DynamoDB": (
        '--projection-expression "recipient,action,target,enabled,description"',
        '--projection-expression "recipient,#action,target,enabled,description"'
        ' --expression-attribute-names \'{"#action": "action"}\'',
    ),
    "automations are filtered by DocumentNamePrefix": (
        "Key=DocumentName,",
        "Key=DocumentNamePrefix,",
    ),
    "`date -v` exists on macOS only": (
        "$(date -u -v-1H +%Y-%m-%dT%H:%M:%S)",
        "$(($(date +%s) - 3600))",
    ),
    "`aws logs tail` needs version 2 of the CLI, which no package index has": (
        "logs tail \\\n  /aws/vendedlogs/pipes/test/ses-email-router --follow",
        "logs filter-log-events --log-group-name /aws/vendedlogs/pipes/test/ses-email-router",
    ),
}


def redriven(world: World, ran: Ran) -> None:
    outputs = scenes.automation_succeeds(world, ran)
    assert outputs["Redrive.RedrivenCount"] == ["1"], outputs
    assert outputs["Redrive.FailedCount"] == ["0"], outputs
    world.cloud.wait_idle()
    assert scenes.copies(world) == 1
    assert world.cloud.dead_letters("GmailForwarderDlq") == []


def delivered_after_a_redrive(world: World, ran: Ran) -> None:
    """As the section goes on: the document redrives what failed (the token monitor may have)."""
    (block,) = (block for block in BLOCKS if block.section == "Automated DLQ Redrive")
    text = block.text
    for name in CASES[block.key].changes:
        text = text.replace(*CHANGES[name])
    again = world.terminal.run(world.fill(text))
    again.check()
    scenes.automation_succeeds(world, again)
    world.post.until(lambda: scenes.copies(world) > 0)
    world.cloud.wait_idle()
    assert scenes.copies(world) == 1
    assert world.cloud.dead_letters("GmailForwarderDlq") == []


def reports_health(world: World, ran: Ran) -> None:
    outputs = scenes.automation_succeeds(world, ran)
    (name,) = (name for name in outputs if name.endswith("HealthStatus"))
    assert outputs[name][0] in ("HEALTHY", "UNHEALTHY")


def pipe_log(world: World) -> None:
    scenes.log(world, "/aws/vendedlogs/pipes/test/ses-email-router", "TargetInvocationFailed")


def forwards_to(address: str) -> Callable[[World, Ran], None]:
    def check(world: World, ran: Ran) -> None:
        scenes.send(world)
        assert scenes.copies(world, address) == 1

    return check


def is_ignored(world: World, ran: Ran) -> None:
    scenes.send(world)
    assert scenes.copies(world) == 0
    (execution,) = world.cloud.executions(world.variables["ID"])
    assert execution["status"] == "SUCCEEDED"


CASES = {
    ("Step 1: Check CloudWatch Logs", 1): Case(not_run="steps of the CloudWatch console"),
    ("Step 2: Inspect DLQ Message Content", 1): Case(
        shows=("GmailRejectedError", scenes.ADDRESS), prepare=scenes.rejected
    ),
    ("Step 3: Check X-Ray Traces", 1): Case(not_run="steps of the X-Ray console"),
    ("Automated DLQ Redrive", 1): Case(
        shows=("AutomationExecutionMetadataList", "SESMail-DLQ-Redrive-test"),
        prepare=scenes.rejected,
        after=redriven,
        changes=(
            "dead letters go back to the input queue",
            "automations are filtered by DocumentNamePrefix",
        ),
    ),
    ("Gmail API Token Expired", 1): Case(
        shows=('"Version": ',), prepare=scenes.token_revoked, after=delivered_after_a_redrive
    ),
    ("Router Enrichment DynamoDB Errors", 1): Case(shows=('"TableStatus": "ACTIVE"',)),
    ("Bouncer SES Sending Failures", 1): Case(shows=('"Enabled": true',)),
    ("EventBridge Pipes Failures", 1): Case(shows=("ses-email-router-test", "RUNNING")),
    ("EventBridge Pipes Failures", 2): Case(
        shows=("TargetInvocationFailed",),
        prepare=pipe_log,
        changes=("`aws logs tail` needs version 2 of the CLI, which no package index has",),
    ),
    ("High Queue Age Alarms", 1): Case(
        shows=('"Label": "ConcurrentExecutions"',), changes=("`date -v` exists on macOS only",)
    ),
    ("P1: Email Processing Completely Down", 1): Case(
        shows=("AutomationExecutionId",), after=reports_health
    ),
    ("Running Runbooks via CLI", 1): Case(shows=("SESMail-Queue-HealthCheck-test", '"Outputs"')),
    ("Adding a New Routing Rule", 1): Case(
        prepare=scenes.mailbox, after=forwards_to(scenes.MAILBOX)
    ),
    ("Updating an Existing Routing Rule", 1): Case(
        prepare=scenes.rule_and_new_mailbox, after=forwards_to(scenes.NEW)
    ),
    ("Disabling a Routing Rule", 1): Case(prepare=scenes.rule, after=is_ignored),
    **{
        ("Common Routing Rule Patterns", number): Case(
            not_run="fields of a rule, no commands: test_the_patterns_are_rules puts them"
        )
        for number in (1, 2, 3)
    },
    ("Viewing All Routing Rules", 1): Case(
        shows=("support@example.com", "forward-to-gmail"),
        prepare=scenes.rule,
        changes=("`action` is a reserved word of DynamoDB",),
    ),
}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block: Block, world: World, record_property: Callable[[str, object], None]) -> None:
    record_property("runbook", "the former runbook")
    run(block, CASES[block.key], world, CHANGES, record_property)


def test_every_case_has_its_block() -> None:
    assert CASES.keys() == {block.key for block in BLOCKS}


def test_every_change_is_needed() -> None:
    assert {name for case in CASES.values() for name in case.changes} == CHANGES.keys()


@pytest.mark.parametrize(
    ("block", "recipient", "mailbox"),
    [
        (1, "user@example.com", "destination@gmail.com"),
        (2, "any@example.com", "catchall@gmail.com"),
    ],
)
def test_the_patterns_are_rules(block: int, recipient: str, mailbox: str, world: World) -> None:
    """The third, which bounces, is what `make demo` runs with."""
    (found,) = (b for b in BLOCKS if b.key == ("Common Routing Rule Patterns", block))
    fields = yaml.safe_load(found.text)
    world.cloud.add_mailbox(mailbox)
    world.cloud.put_rule(fields["PK"].removeprefix("ROUTE#"), fields["action"], fields["target"])
    scenes.send(world, recipient)
    assert scenes.copies(world, mailbox) == 1
