"""A first night, as whoever is paged lives through it: `sesmail health` says what is wrong in the
right words and names the section of the runbook, whose commands make it HEALTHY again within the
time that the runbook says."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.metrics import Reading

from . import scenes, troubles
from .blocks import Block, blocks
from .cases import World

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "runbooks" / "OPERATIONS.md"
BLOCKS = blocks(RUNBOOK)
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Night:
    """What is seen of a trouble, and what the runbook does about it.

    says: patterns, one for each issue of `sesmail health`; section: the runbook's, which an issue
    names; shows: patterns of what its blocks print; codes: how they end, where the answer is no;
    passes_after: the block after which others have done their part; healthy: row of the runbook's
    table; alarms: which are OK again when the runbook says so.
    """

    says: tuple[str, ...]
    section: str
    healthy: str
    alarms: tuple[str, ...]
    shows: Mapping[int, str]
    codes: Mapping[int, int] = field(default_factory=dict)
    passes_after: int = 0


NIGHTS = {
    "token dead": Night(
        (
            r"ses-gmail-forwarder-dlq-test holds 1 dead letters and 0 in flight\. "
            r"Runbook: Dead letters in the forwarder DLQ",
            r"A Gmail token is refused by Google\. Runbook: Gmail token invalid",
        ),
        "Gmail token invalid",
        "a token was renewed",
        ("ses-gmail-forwarder-dlq-messages-test", "ses-mail-gmail-token-invalid-test"),
        {
            1: "invalid_grant",
            2: r"checked\s+yes",
            5: r"\svalid\s(?s:.*)ses-gmail-forwarder-dlq-test\s+0",
        },
        codes={1: 1},
    ),
    "Gmail down for an hour": Night(
        (
            r"Deliveries are delayed: 1 emails are being retried, the oldest since "
            r"[-\d]+ [\d:]+Z\. Runbook: Deliveries delayed",
        ),
        "Deliveries delayed",
        "Gmail came back",
        ("ses-mail-delivery-delayed-test",),
        {1: "GmailTemporaryError", 2: r"delivered.*your-email@gmail\.com"},
        passes_after=1,
    ),
    "malformed rule": Night(
        (
            r"ses-email-input-dlq-test holds 1 dead letters and 0 in flight\. "
            r"Runbook: Dead letters in the input DLQ",
        ),
        "Dead letters in the input DLQ",
        "a malformed rule was fixed",
        ("ses-email-input-dlq-messages-test",),
        {
            1: "InvalidRoutingRuleError",
            2: r"support@example\.com",
            3: r"redriven\s+1\s",
            4: r"ses-email-input-dlq-test\s+0",
        },
        codes={2: 1},
    ),
    "pipe stopped": Night(
        (
            r"Pipe ses-email-router-test is paused and 1 emails wait: mail keeps until "
            r"[-\d]+ [\d:]+Z, 10 days, then is lost\. Runbook: Resuming",
        ),
        "Resuming",
        "the pipe was started again",
        ("ses-email-input-queue-age-test",),
        {1: "RUNNING", 3: r"^HEALTHY"},
    ),
    "DynamoDB throttled": Night(
        (
            r"ses-email-input-dlq-test holds 1 dead letters and 0 in flight\. "
            r"Runbook: Dead letters in the input DLQ",
            r"Alarm ses-mail-lambda-router-errors-test since [-\d]+ [\d:]+Z: The router failed; .*"
            r"OPERATIONS\.md#router-errors",
        ),
        "Router errors",
        "DynamoDB stopped throttling",
        ("ses-email-input-dlq-messages-test", "ses-mail-lambda-router-errors-test"),
        {
            1: "ProvisionedThroughputExceededException",
            2: r"redriven\s+1\s",
            3: r"ses-email-input-dlq-test\s+0",
        },
        passes_after=1,
    ),
}


def test_every_trouble_has_its_night() -> None:
    assert NIGHTS.keys() == troubles.TROUBLES.keys()


def section(name: str) -> list[Block]:
    """What is to be typed there, in order: of two ways to do the same, the first one."""
    return [block for block in BLOCKS if block.section == name and not block.again]


def health(world: World) -> list[str]:
    """The issues that the runbook's first command shows, with which its first word agrees."""
    first = next(block for block in BLOCKS if block.section == "First")
    assert first.text == "sesmail health\n"
    ran = world.terminal.run(first.text, world.variables)
    issues = re.findall("^• (.*)$", ran.out, re.MULTILINE)
    status = "UNHEALTHY" if issues else "HEALTHY"
    ran.check(1 if issues else 0)
    assert ran.out.startswith(f"{status} at "), ran
    return issues


def minutes(text: str) -> int:
    """Of the first `2 hours` or `30 minutes` in a text; 0 if there is none, as in `at once`."""
    found = re.search(r"(\d+) (minutes|hours)", text)
    return int(found[1]) * (60 if found[2] == "hours" else 1) if found else 0


def healthy_within(row: str) -> int:
    """Minutes that the runbook gives, once what it names has happened."""
    (cell,) = re.findall(rf"^\| {row}[^|]* \| ([^|]*) \|$", RUNBOOK.read_text(), re.MULTILINE)
    return 0 if cell.startswith("at once") else minutes(cell)


def alarm_within(name: str) -> int:
    """Minutes after which the runbook says that an alarm is OK again."""
    listed = re.escape(name.removesuffix("-test") + "-{env}")
    (cell,) = re.findall(
        rf"^\| `{listed}` \| [^|]* \| ([^|]*) \|", RUNBOOK.read_text(), re.MULTILINE
    )
    assert minutes(cell), cell
    return minutes(cell)


@pytest.fixture
def night(world: World) -> Iterator[World]:
    """An operator's terminal as the runbook's first block leaves it, and nothing wrong yet."""
    world.variables.update(re.findall(r"export (\w+)=(\S+)", BLOCKS[0].text))
    ssm = world.cloud.client("ssm")
    pages = ssm.get_paginator("get_parameters_by_path")
    for page in pages.paginate(Path="/ses-mail/test/gmail-tokens/"):
        for parameter in page["Parameters"]:
            ssm.delete_parameter(Name=parameter["Name"])
    world.cloud.pass_time(days=30)
    troubles.start(world.cloud)
    world.cloud.events.tick()
    assert health(world) == []
    return world


@pytest.mark.parametrize("name", NIGHTS)
def test_night(night: World, name: str) -> None:
    cloud, trouble, told = night.cloud, troubles.TROUBLES[name], NIGHTS[name]
    before = len(cloud.google.messages(troubles.MAILBOX))
    night.variables["ID"] = troubles.strike(cloud, trouble)
    scenes.renewable(night)

    issues = health(night)
    assert len(issues) == len(told.says), issues
    for pattern, issue in zip(told.says, issues, strict=True):
        assert re.fullmatch(pattern, issue), (pattern, issue)
    cloud.pass_time(minutes=1)  # to read the page

    steps = section(told.section)
    assert told.shows.keys() == {block.number for block in steps}
    for block in steps:
        ran = night.terminal.run(block.text, night.variables)
        ran.check(told.codes.get(block.number, 0))
        assert re.search(told.shows[block.number], ran.out), ran
        if block.number == told.passes_after:
            trouble.passes(cloud)
        # The last block says whether it is over, which it is when all that was begun has ended.
        cloud.wait_idle(troubles.PATIENCE)

    assert len(cloud.google.messages(troubles.MAILBOX)) == before + 1
    left = issues_left(night, healthy_within(told.healthy))
    assert left == []
    for alarm in told.alarms:
        quiet(cloud, alarm, alarm_within(alarm))


def issues_left(world: World, within: int) -> list[str]:
    """What health shows so many minutes later."""
    if within:
        assert health(world), "nothing to wait for: the runbook gives too much time"
        live(world.cloud, within)
    return health(world)


def live(cloud: Any, minutes: int) -> None:
    """Minutes in which nothing happens but what happens every minute and every hour."""
    for minute in range(1, minutes + 1):
        cloud.pass_time(minutes=1)
        if minute % 60 == 0:
            cloud.events.tick()
        cloud.metrics.collect()


def quiet(cloud: Any, alarm: str, within: int) -> None:
    """How much further than N periods CloudWatch looks back, AWS does not say, nor the runbook."""
    live(cloud, within)
    assert alarm not in cloud.metrics.alarms(reading=Reading(extra=0))


def test_gmail_is_asked_again_as_soon_as_the_runbook_says() -> None:
    asl = yaml.safe_load((ROOT / "statemachines" / "process_email.asl.yaml").read_text())
    forward = asl["States"]["For each delivery"]["ItemProcessor"]["States"]["Forward to Gmail"]
    longest = max(retrier.get("MaxDelaySeconds", 0) for retrier in forward["Retry"])
    (cell,) = re.findall(
        r"^\| Gmail came back[^|]* \| ([^|]*) \|$", RUNBOOK.read_text(), re.MULTILINE
    )
    assert timedelta(seconds=longest) == timedelta(minutes=minutes(cell))
