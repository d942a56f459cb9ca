"""What an operator reads of a night whose account is known: each saved query over the logs, each
widget of the dashboard over the metrics."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local.google import Fault
from local.iam import REGION
from tests.template import contract
from tests.template.contract import FUNCTIONS
from tests.template.insights import Event, Row, event
from tests.template.insights import run as ask
from tests.template.monitoring import drawn

from .causes import (
    MONITORING,
    PARAMETERS,  # noqa: F401  of this module's cloud
    Stage,
    a_message_that_is_no_notification,
    abort,
    an_email_that_is_not_in_the_bucket,
    executions_cannot_be_started,
    the_table_refuses_once,
)
from .kit import DLQS, Post, email

TIME_FACTOR = 0.004  # as of test_observability.py, whose cloud this is

# Every email of the night: those of `happens`, and one each of the lookup that was refused, the
# object that was gone, the starts that were refused, the abortion; two that filled the queue.
EMAILS = 13 + 4 + 2
SERVICES = [module.replace("_", "-") for module in FUNCTIONS.values()]
STATES_GROUP = "/aws/vendedlogs/states/ses-mail-process-email-test"
# What Lambda itself writes when it ends a function (Lambda Developer Guide, "Troubleshoot
# invocation issues", "Troubleshoot deployment issues").
CRASHES = [
    "2026-11-25T03:00:00.000Z 11111111-2222-3333 Task timed out after 60.06 seconds",
    "RequestId: 11111111-2222-3333 Error: Runtime exited with error: signal: killed\n"
    "Runtime.ExitError",
    "[ERROR] Runtime.ImportModuleError: Unable to import module 'router': No module named 'x'",
]


@dataclass(frozen=True)
class Night:
    """What happened, and what there is to see of it.

    ids, to: messageIds and recipients by what became of the emails. widgets: what each shows at the
    end, by title and label; peeked: the same, measured while somebody looks at a dead letter.
    """

    ids: dict[str, str]
    to: dict[str, str]
    events: list[Event]
    widgets: dict[str, dict[str, float | None]]
    peeked: dict[str, dict[str, float | None]]
    counted: dict[str, float]
    invocations: list[Any]
    aborted: int  # failed attempts of the email whose execution was aborted


def happens(stage: Stage) -> tuple[dict[str, str], dict[str, str]]:
    post, google = stage.post, stage.cloud.google
    ids, to = {}, {}

    def sent(what: str, recipient: str, **options: Any) -> None:
        to[what] = recipient
        ids[what] = post.send(recipient, **options)
        post.cloud.wait_idle()

    forwarded, mailbox = post.forwarded()
    sent("forwarded", forwarded)
    google.faults.append(Fault(on="start", mailbox=mailbox))
    google.faults.append(Fault(on="start", mailbox=mailbox, status=429, reason="rateLimitExceeded"))
    # Two hours old, so that it is late enough to be seen as delayed.
    sent("retried", forwarded, timestamp=post.cloud.now() - 2 * 3600)
    sent("spam", forwarded, verdicts={"spam": "FAIL"})
    sent("virus", forwarded, verdicts={"virus": "FAIL"})
    sent("refused", post.address("forward-to-gmail", post.mailbox(credentials=False)))
    sent("bounced", post.address("bounce"))
    sent("suppressed", post.address("bounce"), sender="")
    stage.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    sent("bounce refused", post.address("bounce"))
    sent("stored", post.address("store"))
    sent("dropped", post.address("drop"))
    sent("loop", post.address("store"), raw=email(26))
    sent("unrouted", "nobody@example.com")
    sent("malformed", post.address("typo"))
    the_table_refuses_once(stage)
    an_email_that_is_not_in_the_bucket(stage)
    a_message_that_is_no_notification(stage)
    executions_cannot_be_started(stage)
    abort(stage)
    post.cloud.publish(post.cloud.notification(ids["forwarded"]))
    post.queue({"mail": {"messageId": "AMAZON_SES_SETUP_NOTIFICATION"}, "receipt": {}})
    post.cloud.wait_idle()
    a_queue_fills(stage)
    google.revoke(mailbox)
    stage.cloud.events.tick()
    stage.cloud.add_mailbox(mailbox)
    return ids, to


def a_queue_fills(stage: Stage) -> None:
    """Two emails wait, then one of them is in flight, then none waits; each time is measured."""
    stage.cloud.pipe.pause()
    recipient = stage.post.address("store")
    for _ in range(2):
        stage.post.send(recipient)
    stage.cloud.metrics.collect()
    sqs, url = stage.cloud.client("sqs"), stage.cloud.resource("InputQueue")
    (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=30)["Messages"]
    stage.cloud.metrics.collect()
    handle = message["ReceiptHandle"]
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    stage.cloud.pipe.resume()
    stage.cloud.wait_idle()


@pytest.fixture(scope="module")
def night(post: Post) -> Night:
    stage = Stage(post)
    stage.forget()
    began = int(time.time() * 1000)
    post.take()
    ids, to = happens(stage)
    widgets = draw(post)
    counted = post.cloud.metrics.counted()
    invocations = [i for i in post.cloud.runtime.invocations if i.ended * 1000 >= began]
    peeked = peek(stage)
    events = [e for group in groups() for e in written(post, group, began)]
    events += [e for message_id in ids.values() for e in states_lines(post, message_id)]
    failed = (e["messageId"] for e in events if e.get("result") == "failed")
    aborted = sum(message_id not in ids.values() for message_id in failed) - 2
    return Night(ids, to, events, widgets, peeked, counted, invocations, aborted)


def draw(post: Post) -> dict[str, dict[str, float | None]]:
    # The state machine's ARN, as the template's tests resolve it.
    series = {
        (namespace, name, frozenset((d, v.replace(REGION, contract.REGION)) for d, v in of)): points
        for (namespace, name, of), points in post.cloud.metrics.series().items()
    }
    end = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=1)
    graphs = (w for w in MONITORING.widgets if w["type"] == "metric")
    return {w["properties"]["title"]: drawn(w, series, end) for w in graphs}


def peek(stage: Stage) -> dict[str, dict[str, float | None]]:
    """Nothing is known but what is measured while one letter of each DLQ is in flight."""
    sqs = stage.cloud.client("sqs")
    for queue in DLQS:
        url = stage.cloud.resource(queue)
        assert sqs.receive_message(QueueUrl=url, VisibilityTimeout=300)["Messages"]
    stage.forget()
    try:
        return draw(stage.post)
    finally:
        for queue in DLQS:
            sqs.purge_queue(QueueUrl=stage.cloud.resource(queue))


def groups() -> set[str]:
    return {group for query in MONITORING.queries for group in query.log_groups} - {STATES_GROUP}


def written(post: Post, group: str, since: int) -> Iterator[Event]:
    """Through the API, as a query finds it, with what only AWS writes."""
    logs = post.cloud.client("logs")
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since)
    for page in pages:
        for line in page["events"]:
            yield event(group, line["logStreamName"], line["timestamp"], line["message"])
    for number, text in enumerate(CRASHES):
        yield event(group, "platform", since + number, text)


def states_lines(post: Post, message_id: str) -> Iterator[Event]:
    """What the state machine logs at level ERROR: nobody has confirmed the form of these lines
    (docs/decisions.md)."""
    for run in post.runs(message_id):
        for found in post.cloud.history(run.arn):
            if found["type"].endswith(("Failed", "Aborted", "TimedOut")):
                at = int(found["timestamp"].timestamp() * 1000)
                line = {"id": str(found["id"]), "type": found["type"], "execution_arn": run.arn}
                yield event(STATES_GROUP, "states", at, json.dumps(line))


def rows(night: Night, name: str, text: str = "") -> list[Row]:
    """The query with that name, or part of it, over the log groups that it asks."""
    (query,) = (q for q in MONITORING.queries if q.name.endswith(name))
    asked = {f"123456789012:{group}" for group in query.log_groups}
    return ask(text or query.text, [e for e in night.events if e["@log"] in asked])


def newest_first(found: list[Row], field: str = "@timestamp") -> bool:
    times = [row[field] for row in found]
    return times == sorted(times, reverse=True)


def of_emails(found: list[Row]) -> list[Row]:
    """Without the lines that Lambda wrote, which know no email."""
    return [row for row in found if row["messageId"]]


# -- saved queries ---------------------------------------------------------------------------------


def test_every_query_finds_something(night: Night) -> None:
    """After the letter of the documents: the interpreter refuses all else."""
    for query in MONITORING.queries:
        text = query.text.replace("MESSAGE_ID", night.ids["forwarded"])
        if "performance" not in query.name:
            assert rows(night, query.name, text), query.name


@pytest.mark.parametrize(
    "name", ["router-enrichment-errors", "gmail-forwarder-failures", "bouncer-failures"]
)
def test_functions_that_lambda_ended_are_among_the_failures(name: str, night: Night) -> None:
    found = rows(night, name)
    assert newest_first(found)
    assert [row["detail"] for row in found if not row["messageId"]] == CRASHES[::-1]


def test_router_errors(night: Night) -> None:
    lookup, parked = of_emails(rows(night, "router-enrichment-errors"))
    assert lookup["errorType"] == "ClientError"
    assert lookup["error"] == "AccessDeniedException"
    assert "BatchGetItem" in lookup["detail"]
    assert parked["messageId"] == night.ids["malformed"]
    assert parked["recipient"] == parked["matchedRule"] == night.to["malformed"]
    assert "unknown action 'typo'" in parked["detail"]
    assert all(row["executionArn"].endswith(row["messageId"]) for row in (lookup, parked))


def test_forwarder_failures(night: Night) -> None:
    *aborted, refused, again, first = of_emails(rows(night, "gmail-forwarder-failures"))
    assert [row["messageId"] for row in (refused, again, first)] == [
        *(night.ids[what] for what in ("refused", "retried", "retried"))
    ]
    assert refused["recipients.0"] == night.to["refused"]
    assert (refused["errorType"], refused["error"]) == ("GmailTokenError", "missing_credentials")
    assert refused["target"] in refused["detail"]
    assert (first["error"], again["error"]) == ("backendError", "rateLimitExceeded")
    assert len(aborted) == night.aborted > 0
    assert {row["errorType"] for row in aborted} == {"GmailTemporaryError"}


def test_bouncer_failures(night: Night) -> None:
    refused, suppressed = of_emails(rows(night, "bouncer-failures"))
    assert refused["messageId"] == night.ids["bounce refused"]
    assert refused["recipients.0"] == night.to["bounce refused"]
    assert (refused["result"], refused["error"]) == ("failed", "MessageRejected")
    assert refused["errorType"] == "BounceRejectedError"
    assert suppressed["messageId"] == night.ids["suppressed"]
    assert (suppressed["result"], suppressed["detail"]) == ("suppressed", "null-sender")


def test_routing_decisions(night: Night) -> None:
    found = rows(night, "routing-decision-analysis")
    assert found[0] == {
        "action": "forward-to-gmail",
        "matchedRule": night.to["forwarded"],
        "reason": "address",
        "recipients": 3,  # forwarded, retried, spam
    }
    decided = {(row["action"], row["matchedRule"]): row["reason"] for row in found[1:]}
    assert found[1]["recipients"] == 2, "that filled the queue"
    assert {row["recipients"] for row in found[2:]} == {1}
    for what, action in {
        "refused": "forward-to-gmail",
        "bounced": "bounce",
        "suppressed": "bounce",
        "bounce refused": "bounce",
        "stored": "store",
        "dropped": "drop",
    }.items():
        assert decided[action, night.to[what]] == "address"
    assert "unknown action" in decided["park", night.to["malformed"]]
    without_rule = {(r["action"], r["reason"]) for r in found if r["matchedRule"] == "none"}
    assert without_rule == {("drop", "virus"), ("store", "loop"), ("store", "no rule")}
    # All but the one that was not in the bucket.
    assert sum(row["recipients"] for row in found) == EMAILS - 1


TRACES = {
    "forwarded": [
        ("fetcher", "Email fetched", None),
        ("router", "Routing decision", None),
        ("gmail-forwarder", "Action result", "delivered"),
    ],
    "retried": [
        ("fetcher", "Email fetched", None),
        ("router", "Routing decision", None),
        ("gmail-forwarder", "Action result", "failed"),
        (None, "TaskFailed", None),
        ("gmail-forwarder", "Action result", "failed"),
        (None, "TaskFailed", None),
        ("gmail-forwarder", "Action result", "delivered"),
    ],
    "bounce refused": [
        ("fetcher", "Email fetched", None),
        ("router", "Routing decision", None),
        ("bouncer", "Action result", "failed"),
        (None, "TaskFailed", None),
        (None, "ExecutionFailed", None),
    ],
    "stored": [
        ("fetcher", "Email fetched", None),
        ("router", "Routing decision", None),
        ("router", "Action result", "stored"),
    ],
}


STARTS = {what: ["started"] for what in TRACES} | {"forwarded": ["started", "duplicate"]}


@pytest.mark.parametrize("what", TRACES)
def test_trace(what: str, night: Night) -> None:
    (query,) = (q for q in MONITORING.queries if q.name.endswith("trace"))
    events = [e for e in night.events if e["@log"].partition(":")[2] in query.log_groups]
    found = ask(query.text.replace("MESSAGE_ID", night.ids[what]), events)
    told = [(row["service"], row["message"] or row["type"], row["result"]) for row in found]
    # The execution may be at work before the starter has said that it started it.
    starts = [line for line in told if line[0] == "starter"]
    assert starts == [("starter", "Start result", result) for result in STARTS[what]]
    assert [line for line in told if line not in starts] == TRACES[what]
    assert all(row["execution"].endswith(night.ids[what]) for row in found)
    assert [row["@timestamp"] for row in found] == sorted(row["@timestamp"] for row in found)
    assert {row["recipient"] or row["recipients.0"] for row in found} - {None} == {night.to[what]}


def test_dead_letters(night: Night) -> None:
    found = rows(night, "dlq-message-investigation")
    assert newest_first(found, "last")
    assert all(row["first"] <= row["last"] for row in found)
    names = {message_id: what for what, message_id in night.ids.items()}
    told = [
        (names.get(r["email"], ""), r["service"], r["attempts"], r["last_error"]) for r in found
    ]
    assert told == [
        ("", "sweeper", 1, "ABORTED"),
        ("", "gmail-forwarder", night.aborted, "backendError"),
        ("", "starter", 3, "AccessDeniedException"),
        ("", "starter", 1, None),
        ("", "fetcher", 1, "EmailNotFoundError"),
        ("", "router", 1, "AccessDeniedException"),
        ("malformed", "router", 1, None),
        ("bounce refused", "bouncer", 1, "MessageRejected"),
        ("refused", "gmail-forwarder", 1, "missing_credentials"),
        ("retried", "gmail-forwarder", 2, "rateLimitExceeded"),
    ]
    assert all(row["email"] for row in found)
    swept, aborted, starts, parked, *_, retried = found
    assert swept["email"] == aborted["email"]
    assert starts["first"] < starts["last"]
    assert "not JSON" in parked["last_reason"]
    assert retried["last_type"] == "GmailTemporaryError"
    assert retried["target"] in retried["last_cause"]
    assert retried["action"] == "forward-to-gmail"
    (malformed,) = (row for row in found if names.get(row["email"]) == "malformed")
    assert "unknown action" in malformed["last_reason"]


def test_performance() -> None:
    """Lambda's own REPORT lines (Lambda Developer Guide, "Log format"): 20 of each function, each
    slower than the one before."""
    (query,) = (q for q in MONITORING.queries if q.name.endswith("performance-analysis"))
    lines = []
    for slow, group in enumerate(query.log_groups, 1):
        lines.append(event(group, "s", 0, "START RequestId: 1 Version: $LATEST"))
        for number in range(1, 21):
            line = (
                f"REPORT RequestId: 1\tDuration: {number * slow}.5 ms\tBilled Duration: 99 ms\t"
                f"Memory Size: {256 * slow} MB\tMax Memory Used: {number + slow} MB\t"
            )
            cold = f"Init Duration: {900 + slow}.25 ms\t" if number == 1 else ""
            lines.append(event(group, "s", number, line + cold))
    found = ask(query.text, lines)
    assert {row["@log"] for row in found} == {f"123456789012:{g}" for g in query.log_groups}
    slowest = len(query.log_groups)
    assert found[0] == {
        "@log": f"123456789012:{query.log_groups[-1]}",
        "invocations": 20,
        "average_ms": 10.5 * slowest + 0.5,
        "p95_ms": 19 * slowest + 0.5,
        "slowest_ms": 20 * slowest + 0.5,
        "slowest_cold_start_ms": 900.25 + slowest,
        "peak_mb": 20 + slowest,
        "memory_mb": 256 * slowest,
    }
    assert newest_first(found, "p95_ms")


def test_lists_of_the_dashboard(night: Night) -> None:
    assert rows(night, "Suppressed bounces by reason") == [{"reason": "null-sender", "bounces": 1}]
    (invalid,) = rows(night, "Invalid rules")
    assert (invalid["matchedRule"], invalid["recipients"]) == (night.to["malformed"], 1)
    assert "unknown action" in invalid["reason"]


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("router-enrichment-errors", 200),
        ("gmail-forwarder-failures", 200),
        ("bouncer-failures", 200),
        ("email-end-to-end-trace", 1000),
        ("dlq-message-investigation", 200),
    ],
)
def test_a_bad_night_is_shown_as_far_as_a_screen_goes(name: str, most: int, night: Night) -> None:
    (query,) = (q for q in MONITORING.queries if q.name.endswith(name))
    text = query.text.replace("MESSAGE_ID", night.ids["retried"])
    many = [
        {**e, "messageId": f"{e['messageId']}{number if 'dlq' in name else ''}"}
        for e in night.events
        if e.get("messageId")
        for number in range(400)
    ]
    assert len(ask(text, many)) == most


# -- the dashboard ---------------------------------------------------------------------------------


def test_email_processing_overview(night: Night) -> None:
    assert night.widgets["Email Processing Overview"] == {
        "emails": EMAILS,
        "spam": 1,
        "viruses": 1,
        "loops": 1,
        "without a rule": 1,
    }


def test_handler_rates(night: Night) -> None:
    assert night.widgets["Handler Success/Failure Rates"] == {
        "router succeeded": EMAILS - 1,
        "router failed": 1,
        "gmail-forwarder succeeded": 3,
        "gmail-forwarder failed": 2 + 1 + night.aborted,
        "bouncer succeeded": 2,
        "bouncer failed": 1,
        "forwarded": 3,
        "bounced": 1,
        "stored": 7,  # stored, loop, unrouted, lookup and start that were refused, two in the queue
        "dropped": 2,
    }


def test_function_errors(night: Night) -> None:
    assert night.widgets["Lambda Function Errors"] == {
        "starter": 0,
        "fetcher": 1,
        "router": 1,
        "gmail-forwarder": 2 + 1 + night.aborted,
        "bouncer": 1,
        "sweeper": 0,
        "token-monitor": 0,
    }


def test_queue_depths(night: Night) -> None:
    """The worst that was measured, not what is there now."""
    shown = night.widgets["Queue Depths"]
    assert (shown["waiting"], shown["in flight"]) == (2, 1)
    assert (shown["age of the oldest (s)"] or 0) > 0


def test_dlq_message_counts(night: Night) -> None:
    # malformed, not in the bucket, no notification, aborted; refused; bounce refused
    letters = {"ses-email-input-dlq": 4, "ses-gmail-forwarder-dlq": 1, "ses-bouncer-dlq": 1}
    assert night.widgets["DLQ Message Counts"] == letters
    assert night.peeked["DLQ Message Counts"] == letters


def durations(night: Night, function: str) -> list[float]:
    return sorted(
        i.seconds * 1000 for i in night.invocations if i.function == f"ses-mail-{function}-test"
    )


def test_duration(night: Night) -> None:
    shown = night.widgets["Lambda Duration"]
    assert set(shown) == set(SERVICES)
    for function, value in shown.items():
        measured = durations(night, function)
        assert value == measured[math.ceil(0.95 * len(measured)) - 1]


def test_executions(night: Night) -> None:
    assert night.widgets["Executions"] == {
        "started": EMAILS,
        "delivered": EMAILS - 5,
        "failed, mostly dead-lettered": 4,  # refused twice, malformed, not in the bucket
        "timed out": None,
        "aborted": 1,
        "died uncaught, swept": 1,
    }


def test_starts(night: Night) -> None:
    assert night.widgets["Starts"] == {
        "started (also duplicates while they run)": EMAILS,
        "duplicates": 1,
        "ignored": 1,
        "parked": 1,
        "failed, come again": 3,
    }


def test_delivery_delay(night: Night) -> None:
    """The oldest: two attempts at an email of two hours ago, and some at a new one."""
    (shown,) = night.widgets["Delivery Delay"].values()
    assert 7200 <= (shown or 0) < 2 * 7200


def test_gmail_token(night: Night) -> None:
    """One of them was revoked; the others are good."""
    assert list(night.widgets["Gmail Token"].values()) == [0]
    assert night.counted["GmailTokenValid"] > 0


def test_concurrency(night: Night) -> None:
    shown = night.widgets["Lambda Concurrency"]
    assert shown.pop("gmail-forwarder throttled") == 0
    assert set(shown) == set(SERVICES)
    # Emails came one by one, but for the two that filled the queue.
    assert all(1 <= (value or 0) <= 2 for value in shown.values())
    assert len(durations(night, "starter")) > 2, "a sum would show"


def test_pipe(night: Night) -> None:
    shown = night.widgets["Pipe"]
    assert shown["batches"] == len(durations(night, "starter"))
    assert (shown["failed"] or 0) + (shown["failed in part"] or 0) == 3
    assert shown["timed out"] == shown["throttled"] == 0


def test_every_graph_was_looked_at(night: Night) -> None:
    looked = {
        constant
        for name, function in globals().items()
        if name.startswith("test_")
        for constant in function.__code__.co_consts
    }
    assert set(night.widgets) - looked == set()


def test_metrics_equal_the_account(night: Night) -> None:
    """`Metrics.counted` is what a longer run compares with its own account."""
    tokens = night.counted.pop("GmailTokenValid")
    assert tokens > 0
    assert night.counted == {
        "StartsStarted": EMAILS,
        "StartsDuplicate": 1,
        "StartsIgnored": 1,
        "StartsParked": 1,
        "StartsFailed": 3,
        "EmailsFetched": EMAILS - 1,
        "Stored": 7,
        "Dropped": 2,
        "Viruses": 1,
        "Loops": 1,
        "Unrouted": 1,
        "InvalidRules": 1,
        "Forwarded": 3,
        "Spam": 1,
        "Bounced": 1,
        "BouncesSuppressed": 1,
        "Swept": 1,
    }
