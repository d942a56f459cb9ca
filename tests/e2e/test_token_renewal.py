"""A Gmail token dies and is put anew: the mail that it held up is delivered by itself, once."""

import email
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from local.cloud import Cloud
from local.google import Fault

pytestmark = pytest.mark.slow

# 3 h, the time in which a renewed token has mail redriven, take 21.6 s.
FACTOR = 0.002
WINDOW = 3 * 3600 * FACTOR
PATIENCE = 240.0
ANNA, BEN, OTTO = "anna@gmail.example", "ben@gmail.example", "otto@gmail.example"
_numbers = itertools.count(1)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """With a mailbox of Anna's, whose token was found to be good and is revoked now."""
    with Cloud(time_factor=FACTOR, domains=("our.example",)) as running:
        for mailbox in (ANNA, BEN, OTTO):
            name = mailbox.partition("@")[0]
            running.put_rule(f"{name}@our.example", "forward-to-gmail", mailbox)
        running.add_mailbox(ANNA)
        running.wait_idle(PATIENCE)
        running.google.revoke(ANNA)
        yield running


def send(cloud: Cloud, name: str) -> str:
    """An email to name@our.example; its messageId, which is its subject too."""
    key = f"{next(_numbers):040}"
    raw = f"Subject: {key}\r\n\r\nHello\r\n".encode()
    return cloud.send(raw, "zoe@elsewhere.example", [f"{name}@our.example"], message_id=key)


def subjects(cloud: Cloud, mailbox: str) -> Counter[str]:
    """How often each email lies in the mailbox."""
    messages = cloud.google.messages(mailbox)
    return Counter(str(email.message_from_bytes(m.raw)["Subject"]) for m in messages)


def parked(cloud: Cloud) -> list[tuple[str, str]]:
    """(messageId, error) of the letters in the forwarder's dead-letter queue."""
    letters = cloud.dead_letters("GmailForwarderDlq")
    return sorted((x["mail"]["messageId"], x["failure"]["error"]) for x in letters)


def automations(cloud: Cloud) -> list[Any]:
    """All redrives so far, which succeeded."""
    ssm = cloud.client("ssm")
    found = ssm.describe_automation_executions()["AutomationExecutionMetadataList"]
    assert {e["DocumentName"] for e in found} <= {"SESMail-DLQ-Redrive-test"}
    assert {e["AutomationExecutionStatus"] for e in found} <= {"Success"}
    return list(found)


def told(cloud: Cloud, message: str) -> list[dict[str, Any]]:
    """The token monitor's log lines with that message so far."""
    return [line for line in cloud.logs("token-monitor") if line.get("message") == message]


def results(cloud: Cloud) -> list[tuple[str, str]]:
    """(result, error) of the checks so far."""
    return [(line["result"], line["error"]) for line in told(cloud, "Token check")]


def tick(cloud: Cloud) -> None:
    """An hour has come; wait for what that causes."""
    cloud.events.tick()
    cloud.wait_idle(PATIENCE)


def test_twenty_emails_are_delivered_without_another_command(cloud: Cloud) -> None:
    cloud.add_mailbox(BEN)
    refusal = Fault("start", 400, "invalidArgument", mailbox=BEN)
    cloud.google.faults.append(refusal)
    held_up = [send(cloud, "anna") for _ in range(20)]
    refused = send(cloud, "ben")
    cloud.wait_idle(PATIENCE)
    other = (refused, "GmailRejectedError")
    assert parked(cloud) == sorted([*((key, "GmailTokenError") for key in held_up), other])
    assert refusal.fired, "sent again, the other letter would be delivered now"

    cloud.add_mailbox(ANNA)  # a new token into its parameter, by PutParameter
    cloud.wait_idle(PATIENCE)

    assert subjects(cloud, ANNA) == Counter(held_up)
    assert parked(cloud) == [other]
    assert subjects(cloud, BEN) == Counter()
    assert [len(cloud.executions(key)) for key in [*held_up, refused]] == [2] * 20 + [1]
    (automation,) = automations(cloud)
    assert automation["Outputs"]["Redrive.RedrivenCount"] == ["20"]
    (line,) = told(cloud, "Token redrive")
    assert line["automationExecutionId"] == automation["AutomationExecutionId"]
    # Nothing that an hour later runs does it again.
    tick(cloud)
    assert subjects(cloud, ANNA) == Counter(held_up)


def test_the_hourly_run_does_it_when_the_event_is_lost(cloud: Cloud) -> None:
    held_up = [send(cloud, "anna") for _ in range(3)]
    cloud.wait_idle(PATIENCE)
    cloud.events.paused = True
    cloud.add_mailbox(ANNA)
    cloud.wait_idle(PATIENCE)
    cloud.events.paused = False
    assert results(cloud) == [("valid", "")], "only the check before the token died"
    assert len(parked(cloud)) == 3
    tick(cloud)
    assert subjects(cloud, ANNA) == Counter(held_up)
    assert parked(cloud) == []


def test_a_token_that_stays_bad_redrives_nothing(cloud: Cloud) -> None:
    key = send(cloud, "anna")
    cloud.wait_idle(PATIENCE)
    tick(cloud)
    name = cloud.add_mailbox(ANNA)
    cloud.wait_idle(PATIENCE)
    assert [len(cloud.executions(key)), len(automations(cloud))] == [2, 1]
    # Put anew, but the old one by mistake.
    cloud.google.revoke(ANNA)
    key = send(cloud, "anna")
    cloud.wait_idle(PATIENCE)
    ssm = cloud.client("ssm")
    value = ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    for put in (value, json.dumps({"refresh_token": "half of one"}), "no JSON"):
        ssm.put_parameter(Name=name, Value=put, Type="SecureString", Overwrite=True)
        cloud.wait_idle(PATIENCE)
    tick(cloud)
    grant, malformed = ("invalid", "invalid_grant"), ("invalid", "malformed_credentials")
    assert results(cloud)[-4:] == [grant, malformed, malformed, malformed]
    assert len(automations(cloud)) == 1
    assert len(cloud.executions(key)) == 1
    assert parked(cloud) == [(key, "GmailTokenError")]


def test_what_no_renewal_mends_is_not_redriven_for_ever(cloud: Cloud) -> None:
    """Otto's parameter has a good token, but of another mailbox: Google denies the delegation."""
    name = cloud.add_mailbox(OTTO)
    value = json.dumps(cloud.google.add_mailbox(BEN))
    cloud.client("ssm").put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)
    cloud.wait_idle(PATIENCE)
    denied, held_up = send(cloud, "otto"), send(cloud, "anna")
    cloud.wait_idle(PATIENCE)
    cloud.add_mailbox(ANNA)
    cloud.wait_idle(PATIENCE)
    assert subjects(cloud, ANNA) == Counter([held_up])
    assert parked(cloud) == [(denied, "GmailTokenError")]
    time.sleep(WINDOW)
    redriven = len(automations(cloud))
    assert redriven == 1
    for _ in range(3):
        tick(cloud)
    assert results(cloud)[-2:] == [("valid", "")] * 2, "the token itself is good"
    assert len(automations(cloud)) == redriven
    assert len(cloud.executions(denied)) == 2
    assert parked(cloud) == [(denied, "GmailTokenError")]
