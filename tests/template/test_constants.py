"""Constants that depend on each other, in whatever files they stand: one test per relation."""

import ast
import importlib
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ses_mail import clients, credentials, deliveries, gmail, monitor_tokens, sweep

from local.events import rate
from tests.template.contract import Project

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
MONITORING = Project(ROOT, file="monitoring.yaml")
MINUTE, HOUR, DAY = 60, 3600, 86400
KIB, MIB = 1024, 1024 * 1024
# Systems Manager ends a script after ten minutes ("aws:executeScript").
LONGEST_SCRIPT = 600
# A client waits so long for AWS (botocore's read_timeout).
ANSWER = 60


@cache
def document(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / f"runbooks/{name}.yaml").read_text())
    return content


def step(name: str) -> Mapping[str, Any]:
    (only,) = document(name)["mainSteps"]
    found: Mapping[str, Any] = only
    return found


def constants(name: str) -> dict[str, Any]:
    """What the document's script defines at its top, timedelta as seconds."""
    tree = ast.parse(step(name)["inputs"]["Script"])
    wanted = [node for node in tree.body if isinstance(node, ast.Assign)]
    space: dict[str, Any] = {"timedelta": timedelta, "re": re}
    for node in wanted:
        exec(compile(ast.Module([node], []), name, "exec"), space)
    names = [
        target.id for node in wanted for target in node.targets if isinstance(target, ast.Name)
    ]
    return {
        n: v.total_seconds() if isinstance(v, timedelta) else v
        for n, v in space.items()
        if n in names
    }


def hourly(rule: str) -> int:
    return int(rate(PROJECT.deployed_properties(rule)["ScheduleExpression"]))


def time_of(function: str) -> int:
    return int(PROJECT.properties(function)["Timeout"])


# -- the redrive document --------------------------------------------------------------------------


def test_a_run_ends_by_itself_before_its_step_is_ended() -> None:
    """What it has begun may take one answer more; cut off, it would show no letter again."""
    limit = step("dlq_redrive")["timeoutSeconds"]
    assert constants("dlq_redrive")["RUN"] + ANSWER <= limit <= LONGEST_SCRIPT
    # And uses the time that it has: a queue of thousands takes few runs.
    assert constants("dlq_redrive")["RUN"] >= limit * 3 / 4


def test_a_run_reads_no_letter_twice() -> None:
    """A letter that it skipped, or that SQS refused, stays hidden until the step is over."""
    hidden = constants("dlq_redrive")["VISIBILITY"]
    assert hidden >= step("dlq_redrive")["timeoutSeconds"] + ANSWER
    # A run that was cut off must not hide letters from the operator for long.
    assert hidden <= 15 * MINUTE


def test_the_redrive_document_says_how_long() -> None:
    said = " ".join(document("dlq_redrive")["description"].split())
    own = constants("dlq_redrive")
    assert f"A run ends after {own['RUN'] // MINUTE} minutes" in said
    assert f"stay invisible for {own['VISIBILITY'] // MINUTE} minutes" in said


# -- the health check ------------------------------------------------------------------------------


def test_health_and_the_alarm_call_a_message_old_at_the_same_age() -> None:
    alarm = MONITORING.properties("InputQueueAgeAlarm")
    assert constants("queue_health_check")["OLD"] == int(alarm["Threshold"])


def test_health_calls_a_delivery_late_before_the_alarm_does_and_not_at_once() -> None:
    late = constants("queue_health_check")["LATE"]
    # The usual retries of passing errors (`anything else`, about 15 minutes) are no news.
    assert 15 * MINUTE <= late < int(MONITORING.properties("DeliveryDelayedAlarm")["Threshold"])


def test_the_longest_execution_is_as_long_as_its_retries_may_take() -> None:
    """Three rounds of at most 40 deliveries, each of which tries for about two days."""
    rounds, tries = math.ceil(100 / 40), 48 * HOUR
    assert rounds * tries <= constants("queue_health_check")["LONGEST_EXECUTION"] <= 8 * DAY


def test_health_looks_back_over_more_than_one_check_of_the_tokens() -> None:
    script = step("queue_health_check")["inputs"]["Script"]
    (back,) = re.findall(r"StartTime=now - timedelta\(hours=(\d+)\)", script)
    # One run may fail, and its successor may be late.
    assert int(back) * HOUR >= 3 * hourly("TokenMonitorFunctionHourly")
    (fresh,) = re.findall(r"> now - timedelta\(minutes=(\d+)\)", script)
    assert int(fresh) * MINUTE == 15 * MINUTE  # SQS's metrics are late by up to that


def test_the_health_check_ends_in_time() -> None:
    assert step("queue_health_check")["timeoutSeconds"] <= LONGEST_SCRIPT
    # Six services are asked, and each may be slow.
    assert step("queue_health_check")["timeoutSeconds"] >= 5 * ANSWER


# -- sweeper and token monitor ---------------------------------------------------------------------


def test_the_sweeper_looks_further_back_than_its_next_run() -> None:
    """One run may fail, and lists lag."""
    assert 3 * hourly("SweeperFunctionHourly") <= sweep.HOURS * HOUR


def test_marks_outlive_what_they_are_about() -> None:
    """Step Functions keeps what ended for 90 days (Quotas, "state machine executions")."""
    own = sweep._MARK_DAYS
    assert 90 < own <= 100
    text = (ROOT / "statemachines/process_email.asl.yaml").read_text()
    assert re.findall(r"\$millis\(\) / (\d+)\) \+ (\d+) \* (\d+)\)", text) == [
        ("1000", str(own), str(DAY))
    ]


def test_functions_that_walk_lists_end_by_themselves() -> None:
    """Each keeps as long as its longest step may take, and uses most of its time."""
    of_sweeper = importlib.import_module("sweeper")._TIME_TO_END / 1000
    assert 10 <= of_sweeper <= time_of("SweeperFunction") / 4
    of_monitor = importlib.import_module("token_monitor")._TIME_TO_END / 1000
    # google-auth asks up to three times; then each check is recorded and mail redriven.
    assert 3 * monitor_tokens._TIMEOUT + 20 <= of_monitor <= time_of("TokenMonitorFunction") / 4


def test_a_token_that_became_good_is_seen_by_more_than_one_check() -> None:
    assert 3 * hourly("TokenMonitorFunctionHourly") <= monitor_tokens._WINDOW
    # Without an end, mail that no token helps would be redriven every hour.
    assert 6 * hourly("TokenMonitorFunctionHourly") >= monitor_tokens._WINDOW


def test_the_alarm_on_tokens_waits_for_a_check_that_is_late() -> None:
    alarm = MONITORING.properties("GmailTokenInvalidAlarm")
    assert int(alarm["Period"]) * int(alarm["EvaluationPeriods"]) >= 2 * hourly(
        "TokenMonitorFunctionHourly"
    )


# -- Gmail -----------------------------------------------------------------------------------------


def test_a_chunk_is_what_the_protocol_and_the_memory_allow() -> None:
    assert gmail.CHUNK % (256 * KIB) == 0
    # As read from S3, in the request and on its way through TLS; half is for everything else.
    assert PROJECT.properties("GmailForwarderFunction")["MemorySize"] * MIB / 2 >= 3 * gmail.CHUNK
    # Flat: the copies of a chunk together are a good deal shorter than the longest email.
    assert 3 * gmail.CHUNK <= 20 * MIB
    # The longest email that SES takes is sent in few requests, each of which costs a round trip.
    assert 40 * MIB / gmail.CHUNK <= 10


def test_a_request_to_gmail_ends_within_the_function_s_time() -> None:
    """With enough time left for a second request, and for saying what became of the first."""
    waits = gmail._WAITS * gmail._LONGEST_WAIT
    assert waits + gmail.TIME_TO_END < time_of("GmailForwarderFunction")
    assert gmail._LONGEST_WAIT >= 30  # a chunk over a slow line
    assert 2 <= gmail._SHORTEST_WAIT <= gmail._LONGEST_WAIT
    # The record of what was delivered is the last call.
    assert clients.LONGEST_CALL < gmail.TIME_TO_END
    # And a chunk is read, sent and recorded.
    least = clients.LONGEST_CALL + gmail._WAITS * gmail._SHORTEST_WAIT + gmail.TIME_TO_END
    assert least <= gmail._TIME_FOR_CHUNK < time_of("GmailForwarderFunction") / 2


def test_credentials_are_kept_a_minute() -> None:
    assert 0 < credentials._CACHE_SECONDS <= MINUTE


# -- the deliveries table --------------------------------------------------------------------------


def test_records_outlive_dead_letters() -> None:
    kept = [
        PROJECT.properties(name)["MessageRetentionPeriod"] for name in ("InputDlq", "BouncerDlq")
    ]
    longest = max(int(seconds) for seconds in kept) // DAY
    # Redriven on its last day, the email may be parked once more.
    assert max(45, 3 * longest) <= deliveries._MIN_DAYS
    assert deliveries._DAY == DAY
