"""Processes that die at the worst moment: nothing lost, no second copy, never a second bounce.

`CRASHES=full` runs the counts that the guarantees name; without it every point is still met once.
"""

import itertools
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from local.cloud import Cloud
from local.faults import KILL_AFTER, KILL_BEFORE, KILL_MID, KILLED, TIMED_OUT, Fault, Faults
from local.google import Message
from local.model import may_be_in_doubt

pytestmark = pytest.mark.slow

FULL = os.environ.get("CRASHES") == "full"
FACTOR = 0.02
MIB = 1024 * 1024
FORWARDER, BOUNCER = "ses-mail-gmail-forwarder-test", "ses-mail-bouncer-test"
ANNA, BEN = "anna@gmail.example", "ben@gmail.example"
SENDER = "zoe@elsewhere.example"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(time_factor=FACTOR, domains=("our.example",), faults=Faults()) as running:
        for mailbox in (ANNA, BEN):
            running.add_mailbox(mailbox)
        running.put_rule("anna@our.example", "forward-to-gmail", ANNA)
        running.put_rule("alias@our.example", "forward-to-gmail", ANNA)
        running.put_rule("ben@our.example", "forward-to-gmail", BEN)
        running.put_rule("gone@our.example", "bounce")
        running.put_rule("former@our.example", "bounce")
        running.runtime.prewarm()
        yield running


@pytest.fixture(autouse=True)
def _healed(cloud: Cloud) -> Iterator[None]:
    yield
    cloud.faults.heal()
    cloud.google.forget_finished = False
    cloud.wait_idle(300)


def report(text: str) -> None:
    """For whoever runs pytest with -s."""
    sys.stdout.write(f"\n{text}\n")


def tally(deaths: Sequence[tuple[str, str, str]]) -> str:
    counts = Counter(f"{site} {kind}" for _, site, kind in deaths)
    return ", ".join(f"{point} {number}x" for point, number in sorted(counts.items()))


def name() -> str:
    """A message id as SES gives them, for a script of faults to name before the email is sent."""
    return f"crash{next(_numbers):035}"


def raw(message_id: str, size: int = 2000) -> bytes:
    head = f"From: <{SENDER}>\r\nX-Crash: {message_id}\r\n\r\n".encode()
    return head + random.Random(message_id).randbytes(size)


def copies(cloud: Cloud, mailbox: str, message_id: str) -> list[Message]:
    """Copies of one email in a mailbox, found by their first lines."""
    mark = f"X-Crash: {message_id}\r\n".encode()
    return [m for m in cloud.google.messages(mailbox) if mark in m.raw[:2000]]


def body(message: Message) -> bytes:
    return re.sub(rb"\A(?:Delivered-To: [^\r]*\r\n)+", b"", message.raw)


def named(message: Message) -> list[str]:
    return re.findall(r"^Delivered-To: (.*)\r$", message.raw[:2000].decode("latin-1"), re.M)


def killed(cloud: Cloud, by: str, keys: Sequence[str]) -> list[tuple[str, str, str]]:
    """(message id, site, kind) of the deaths of these emails' workers."""
    return [
        (f.key, f.site, f.kind)
        for f in cloud.faults.fired()
        if f.key in keys and f.by == by and f.kind in KILLED
    ]


# Each step by its site, and each call of a forwarder by its number: claim, parameter, token, start,
# record, (read, chunk) once or twice, end. A warm one has fewer.
_POINTS: list[tuple[str, str, list[int] | None]] = [
    (kind, f"gmail:{step}", None)
    for step in ("Start", "Chunk")
    for kind in (KILL_BEFORE, KILL_MID, KILL_AFTER)
] + [(kind, "*", [call]) for call in range(10) for kind in (KILL_BEFORE, KILL_AFTER)]


def forward_under_deaths(cloud: Cloud, wanted: int) -> dict[str, int]:
    """Forward emails, each of whose forwarders dies once at a point or twice, until `wanted`
    forwarders have died; {message id: length of the email's body}."""
    points = itertools.cycle(_POINTS)
    sent: dict[str, int] = {}
    deaths: list[tuple[str, str, str]] = []
    while len(deaths) < wanted:
        batch = {name(): 5 * MIB if n % 4 == 0 else 2000 for n in range(min(wanted, 40))}
        cloud.faults.faults = [
            Fault(
                kind,
                site,
                by=FORWARDER,
                keys=[key],
                attempts=[0, 1] if n % 5 == 0 else [0],
                calls=calls,
            )
            for n, (key, (kind, site, calls)) in enumerate(zip(batch, points, strict=False))
        ]
        for key, size in batch.items():
            cloud.send(raw(key, size), SENDER, ["anna@our.example"], message_id=key)
        cloud.wait_idle(300)
        sent |= batch
        deaths = killed(cloud, FORWARDER, list(sent))
    return sent


def assert_all_succeeded(cloud: Cloud, keys: Sequence[str]) -> None:
    ends = Counter(e["status"] for key in keys for e in cloud.executions(key))
    assert ends == Counter(SUCCEEDED=len(keys))


def test_forwarder_killed_at_each_point(cloud: Cloud) -> None:
    sent = forward_under_deaths(cloud, 200 if FULL else 26)
    deaths = killed(cloud, FORWARDER, list(sent))
    report(f"{len(deaths)} forwarders killed: {tally(deaths)}")
    assert_all_succeeded(cloud, list(sent))
    for key, size in sent.items():
        (copy,) = copies(cloud, ANNA, key)
        assert body(copy) == raw(key, size)
    # The point that matters: Gmail has the last byte, and nothing of it is recorded.
    assert ("gmail:Chunk", KILL_AFTER) in {(site, kind) for _, site, kind in deaths}


def test_forwarder_killed_when_google_forgets_finished_sessions(cloud: Cloud) -> None:
    """The one window that remains: copies are counted here, and loss there is none."""
    cloud.google.forget_finished = True
    sent = forward_under_deaths(cloud, 200 if FULL else 8)
    deaths = killed(cloud, FORWARDER, list(sent))
    # Killed between Gmail's last answer and the record of it.
    after_last = {
        key
        for key, site, kind in deaths
        if (site, kind) in (("gmail:Chunk", KILL_AFTER), ("dynamodb:UpdateItem", KILL_BEFORE))
        or (kind == KILL_MID and site == "dynamodb:UpdateItem")
    }
    second = {key for key in sent if len(copies(cloud, ANNA, key)) > 1}
    report(f"{len(deaths)} forwarders killed, {len(sent)} emails, {len(second)} with a second copy")
    assert_all_succeeded(cloud, list(sent))
    for key, size in sent.items():
        assert {body(copy) for copy in copies(cloud, ANNA, key)} == {raw(key, size)}
    assert second <= after_last


# A bouncer's calls: read, look up, claim, count, mark, SendBounce, end; one more than there are.
_BOUNCE_CALLS = 8


def test_bouncer_killed_at_each_point(cloud: Cloud) -> None:
    points = [
        (kind, call, attempts)
        for _ in range(4 if FULL else 1)
        for call in range(_BOUNCE_CALLS)
        for kind in (KILL_BEFORE, KILL_AFTER)
        for attempts in ([0], [0, 1])
    ]
    keys = [name() for _ in points]
    cloud.faults.faults = [
        Fault(kind, "*", by=BOUNCER, keys=[key], attempts=attempts, calls=[call])
        for key, (kind, call, attempts) in zip(keys, points, strict=True)
    ]
    before = len(cloud.bounces)
    for number, key in enumerate(keys):
        sender = f"zoe{number}@elsewhere.example"
        cloud.send(raw(key), sender, ["gone@our.example", "former@our.example"], message_id=key)
    cloud.wait_idle(300)
    deaths = killed(cloud, BOUNCER, keys)
    report(f"{len(deaths)} bouncers killed: {tally(deaths)}")
    (send,) = {f.call for f in cloud.faults.fired() if f.key in keys and f.site == "ses:SendBounce"}
    assert 2 < send < _BOUNCE_CALLS - 1
    sent = Counter(bounce["messageId"] for bounce in cloud.bounces[before:])
    assert max(sent.values()) == 1
    # The mark `sending` comes just before: whoever dies with it set leaves a bounce that may have
    # been sent or not, and nobody can be asked.
    for key, (kind, call, _) in zip(keys, points, strict=True):
        if call < send - 1 or (call, kind) == (send - 1, KILL_BEFORE):
            assert sent[key] == 1, (kind, call)
    assert_all_succeeded(cloud, keys)
    # The soak's model knows exactly whose bounce is in doubt.
    fired = cloud.faults.fired()
    slow = {f.key for f in fired if f.kind == TIMED_OUT}
    doubtful = {key: may_be_in_doubt(key, "gone@our.example", fired, sent[key] > 0) for key in keys}
    recorded = {key: reason(cloud, key, "gone@our.example") == "maybe-sent" for key in keys}
    assert {k: v for k, v in doubtful.items() if k not in slow} == {
        k: v for k, v in recorded.items() if k not in slow
    }


def reason(cloud: Cloud, key: str, recipient: str) -> str:
    """Why a bounce was suppressed, by the deliveries table."""
    item = cloud.client("dynamodb").get_item(
        TableName=cloud.resource("DeliveriesTable"),
        Key={"PK": {"S": f"EMAIL#{key}"}, "SK": {"S": f"BOUNCE#{recipient}"}},
    )["Item"]
    return item.get("reason", {}).get("S", "")


def test_duplicate_notifications(cloud: Cloud) -> None:
    key = name()
    cloud.send(raw(key), SENDER, ["anna@our.example"], message_id=key)
    for _ in range(1000 if FULL else 100):
        cloud.publish(cloud.notification(key))
    cloud.wait_idle(300)
    assert len(copies(cloud, ANNA, key)) == 1
    assert len(cloud.executions(key)) == 1


def test_notifications_with_disjoint_recipients(cloud: Cloud) -> None:
    """SES sends one notification per receipt rule that matches, all under one messageId."""
    pairs = [
        (["anna@our.example"], ["ben@our.example"], (1, 1)),
        # Two aliases of one mailbox, which gets one copy.
        (["anna@our.example"], ["alias@our.example"], (1, 0)),
    ]
    keys = [name() for _ in range(100 if FULL else 20)]
    wanted = dict(zip(keys, itertools.cycle(pairs), strict=False))

    def send(key: str) -> None:
        first, second, _ = wanted[key]
        cloud.send(raw(key), SENDER, first, message_id=key)
        other = cloud.notification(key)
        other["receipt"]["recipients"] = second
        cloud.publish(other)

    threads = [threading.Thread(target=send, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cloud.wait_idle(300)
    for key, (_, _, numbers) in wanted.items():
        found = tuple(len(copies(cloud, mailbox, key)) for mailbox in (ANNA, BEN))
        assert found == numbers
        assert sorted(e["status"] for e in cloud.executions(key)) == ["SUCCEEDED"] * 2


def test_dead_letter_redriven_twice_at_once(cloud: Cloud) -> None:
    cloud.google.revoke(BEN)
    keys = [name() for _ in range(10)]
    for key in keys:
        cloud.send(raw(key), SENDER, ["ben@our.example"], message_id=key)
    cloud.wait_idle(120)
    letters = take(cloud, "GmailForwarderDlq")
    assert [json.loads(letter)["failure"]["error"] for letter in letters] == [
        "GmailTokenError"
    ] * 10
    cloud.add_mailbox(BEN)
    threads = [
        threading.Thread(target=redrive, args=(cloud, letter)) for letter in letters for _ in "12"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cloud.wait_idle(120)
    # And once more, long after it was delivered.
    for letter in letters:
        redrive(cloud, letter)
    cloud.wait_idle(120)
    assert [len(copies(cloud, BEN, key)) for key in keys] == [1] * 10
    assert take(cloud, "GmailForwarderDlq") == []


def take(cloud: Cloud, queue: str) -> list[str]:
    """Bodies of a dead-letter queue's messages, which are gone then."""
    sqs, url, bodies = cloud.client("sqs"), cloud.resource(queue), []
    while received := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for message in received:
            bodies.append(message["Body"])
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return bodies


def redrive(cloud: Cloud, letter: str) -> None:
    cloud.client("sqs").send_message(QueueUrl=cloud.resource("InputQueue"), MessageBody=letter)


def test_half_done_upload_is_finished_for_other_recipients(cloud: Cloud) -> None:
    key = name()
    size = 9 * MIB
    cloud.faults.faults = [
        # The second chunk: the first one of 4 MiB and half of it are at Gmail then.
        Fault(KILL_MID, "gmail:Chunk", by=FORWARDER, keys=[key], attempts=[0], calls=[n])
        for n in (6, 7, 8)
    ]
    cloud.send(raw(key, size), SENDER, ["anna@our.example"], message_id=key)
    while not killed(cloud, FORWARDER, [key]):
        time.sleep(0.05)
    (execution,) = cloud.executions(key)
    cloud.client("stepfunctions").stop_execution(executionArn=execution["executionArn"])
    other = cloud.notification(key)
    other["receipt"]["recipients"] = ["alias@our.example"]
    cloud.publish(other)
    cloud.wait_idle(120)
    (copy,) = copies(cloud, ANNA, key)
    assert body(copy) == raw(key, size)
    assert named(copy) == ["anna@our.example"]
    assert sorted(e["status"] for e in cloud.executions(key)) == ["ABORTED", "SUCCEEDED"]
    # The sweeper parked the aborted one; redriven, it finds the email already there.
    (letter,) = take(cloud, "InputDlq")
    redrive(cloud, letter)
    cloud.wait_idle(120)
    assert len(copies(cloud, ANNA, key)) == 1


def test_emails_of_40_mb_at_once(cloud: Cloud) -> None:
    # A function has four workers here, so four at once are as many as ten.
    keys = [name() for _ in range(10 if FULL else 4)]
    before = len(cloud.runtime.invocations)
    for key in keys:
        email = raw(key, 0)
        email += random.Random(key).randbytes(40 * MIB - len(email))
        cloud.send(email, SENDER, ["anna@our.example"], message_id=key)
    cloud.wait_idle(300)
    assert [len(copies(cloud, ANNA, key)) for key in keys] == [1] * len(keys)
    for key in keys:
        (copy,) = copies(cloud, ANNA, key)
        assert len(body(copy)) == 40 * MIB
        assert body(copy)[-MIB:] == random.Random(key).randbytes(40 * MIB - len(raw(key, 0)))[-MIB:]
    peaks = {
        i.function: max(
            j.peak for j in cloud.runtime.invocations[before:] if j.function == i.function
        )
        for i in cloud.runtime.invocations[before:]
    }
    report(str({function: f"{peak / MIB:.0f} MiB" for function, peak in peaks.items()}))
    assert max(peaks.values()) < 128 * MIB
