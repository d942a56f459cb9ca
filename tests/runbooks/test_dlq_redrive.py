"""The redrive document's script: paced, resumable, and only between queues that belong together."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local import strict
from local.patches import Patches
from tests.fixtures.aws import Aws

from .documents import Clock, Killed, Queues, Watch, attributes, busiest_second, counted


@pytest.fixture
def queues(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queues]:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    patches = Patches()
    strict.install(patches)
    yield Queues(aws.environment, boto3.session.Session().client("sqs"))
    patches.undo()


def redrive_to_the_end(
    queues: Queues, kills: list[int], velocity: int
) -> tuple[Counter[str], list[float], Counter[str]]:
    """Run, kill at these moments, run again: copies of each body in the input queue, times of all
    sends, and how often each letter was struck after its sending and before its deletion."""
    sends: list[float] = []
    struck: Counter[str] = Counter()
    for kill_at in [*kills, None]:
        watch = Watch(queues.clock, kill_at)
        try:
            result = queues.redrive(watch, VelocityPerSecond=velocity)
        except Killed:
            queues.show(watch.unfinished)
        else:
            assert (result["FailedCount"], result["Remaining"]) == (0, 0)
        sends += watch.sends
        struck += Counter(watch.struck)
    assert queues.count(queues.dlq) == (0, 0)
    return counted(queues.drain(queues.input)), sends, struck


@pytest.mark.parametrize("seed", [1, 2])
def test_500_letters_at_50_a_second(
    queues: Queues, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(seed)
    queues.clock = Clock(seed)
    kills = [] if seed == 1 else [chance.randrange(150) for _ in range(20)]
    bodies = queues.park(500)
    begin = queues.clock.now
    copies, sends, struck = redrive_to_the_end(queues, kills, 50)
    assert busiest_second(sends) == 50
    # Each once, but for those that were struck between being sent and being deleted: the
    # workflow drops their copies, see test_automation.py.
    assert copies == Counter(bodies) + struck
    assert bool(struck) is bool(kills)
    seconds = queues.clock.now - begin
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{len(sends)} sent for 500 letters in {seconds:.1f} s, {len(kills)} kills: "
            f"{len(sends) / seconds:.1f} per second, {busiest_second(sends)} in the busiest"
        )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(0, 60), max_size=4), velocity=st.integers(1, 12))
def test_killed_anywhere(queues: Queues, kills: list[int], velocity: int) -> None:
    bodies = queues.park(12)
    copies, sends, struck = redrive_to_the_end(queues, kills, velocity)
    assert copies == Counter(bodies) + struck
    assert busiest_second(sends) <= velocity


def test_every_moment_of_one_letter(queues: Queues) -> None:
    """Before and after each call: received, sent, deleted, shown again, counted."""
    doubled = []
    for moment in range(20):
        queues.park(1)
        copies, _, struck = redrive_to_the_end(queues, [moment], 10)
        assert copies.total() == 1 + struck.total()
        doubled += [moment] * struck.total()
    # After the answer to SendMessage, and before DeleteMessage goes out.
    assert doubled == [3, 4]


def test_attributes_and_body_stay_as_they_were(queues: Queues) -> None:
    kept = {**attributes("GmailTokenError"), "Raw": {"DataType": "Binary", "BinaryValue": b"\0\1"}}
    body = '{"mail": "Zoë \\\\ \\" {{ Error }}"}'
    queues.sqs.send_message(QueueUrl=queues.dlq, MessageBody=body, MessageAttributes=kept)
    queues.redrive()
    (message,) = queues.drain(queues.input)
    assert message["Body"] == body
    found = {
        name: {key: value for key, value in attribute.items() if key in kept[name]}
        for name, attribute in message["MessageAttributes"].items()
    }
    assert found == kept


@pytest.mark.parametrize(
    ("attribute", "body", "error", "redriven"),
    [
        ("GmailTokenError", "{}", "GmailTokenError", 1),
        ("GmailTokenError", "{}", "", 1),
        ("GmailTokenError", "{}", "GmailRejectedError", 0),
        ("GmailTokenError", "{}", "GmailToken", 0),
        # The attribute wins, and the body tells where there is none.
        ("X", '{"failure": {"error": "Y"}}', "X", 1),
        ("X", '{"failure": {"error": "Y"}}', "Y", 0),
        (None, '{"failure": {"error": "States.Timeout"}}', "States.Timeout", 1),
        (None, '{"failure": {"error": "X"}}', "Y", 0),
        (None, '{"failure": {}}', "X", 0),
        (None, '["failure"]', "X", 0),
        (None, "null", "X", 0),
        (None, "no JSON", "X", 0),
        (None, "[" * 100_000, "X", 0),
        (None, "no JSON", "", 1),
    ],
)
def test_error_filter(
    queues: Queues, attribute: str | None, body: str, error: str, redriven: int
) -> None:
    queues.sqs.send_message(
        QueueUrl=queues.dlq,
        MessageBody=body,
        MessageAttributes=attributes(attribute) if attribute else {},
    )
    result = queues.redrive(Error=error)
    assert (result["RedrivenCount"], result["SkippedCount"]) == (redriven, 1 - redriven)
    assert result["Remaining"] == 0
    assert len(queues.drain(queues.input)) == redriven
    # What stays can be seen again at once.
    assert queues.count(queues.dlq) == (1 - redriven, 0)


@pytest.mark.parametrize(
    "body",
    [
        '{"mail": {"messageId": "wanted"}}',
        '{"Type": "Notification", "Message": "{\\"mail\\": {\\"messageId\\": \\"wanted\\"}}"}',
        '{"original": "{\\"mail\\": {\\"messageId\\": \\"wanted\\"}}", "failure": {}}',
    ],
)
def test_one_email_of_many(queues: Queues, body: str) -> None:
    """In any of the shapes in which a letter may lie there; killed at any moment, none is lost."""
    for moment in range(12):
        queues.park(2)
        queues.sqs.send_message(QueueUrl=queues.dlq, MessageBody=body)
        watch = Watch(queues.clock, moment)
        with contextlib.suppress(Killed):
            queues.redrive(watch, MessageId="wanted")
        queues.show(watch.unfinished)
        queues.redrive(MessageId="wanted")
        copies = counted(queues.drain(queues.input))
        assert set(copies) == {body}
        assert copies.total() == 1 + len(watch.struck)
        assert len(queues.drain(queues.dlq)) == 2


def test_both_filters_must_fit(queues: Queues) -> None:
    queues.sqs.send_message(
        QueueUrl=queues.dlq, MessageBody="wanted", MessageAttributes=attributes("X")
    )
    result = queues.redrive(MessageId="wanted", Error="Y")
    assert (result["RedrivenCount"], result["SkippedCount"]) == (0, 1)
    assert queues.redrive(MessageId="wanted", Error="X")["RedrivenCount"] == 1


def test_filtered_letters_are_read_once(queues: Queues) -> None:
    queues.park(25, "GmailRejectedError")
    wanted = queues.park(25, first=25)
    queues.clock.cost = 1.0  # a run that reads on and on ends all the same
    watch = Watch(queues.clock)
    result = queues.redrive(watch, Error="GmailTokenError")
    assert len(watch.received) == len(set(watch.received)) == 50
    assert (result["RedrivenCount"], result["SkippedCount"], result["Remaining"]) == (25, 25, 0)
    assert counted(queues.drain(queues.input)) == Counter(wanted)
    assert queues.count(queues.dlq) == (25, 0)


@pytest.mark.parametrize(("most", "redriven"), [(1, 1), (7, 7), (10, 10), (13, 13), (99, 30)])
def test_max_messages(queues: Queues, most: int, redriven: int) -> None:
    bodies = queues.park(30)
    result = queues.redrive(MaxMessages=most)
    assert (result["RedrivenCount"], result["Remaining"]) == (redriven, 30 - redriven)
    assert queues.count(queues.dlq) == (30 - redriven, 0)
    queues.redrive()
    assert counted(queues.drain(queues.input)) == Counter(bodies)


def test_letter_that_cannot_be_sent_stays(queues: Queues) -> None:
    bodies = queues.park(12)
    refused = {bodies[3], bodies[7]}
    watch = Watch(queues.clock, refused=refused)
    result = queues.redrive(watch, VelocityPerSecond=5)
    assert (result["RedrivenCount"], result["FailedCount"], result["Remaining"]) == (10, 2, 2)
    assert set(counted(queues.drain(queues.input))) == set(bodies) - refused
    assert queues.count(queues.dlq) == (2, 0)
    assert busiest_second(watch.sends) <= 5
    # Once its cause is over, the next run takes it along.
    assert queues.redrive()["RedrivenCount"] == 2
    assert set(counted(queues.drain(queues.input))) == refused


def test_stops_in_time_and_says_what_is_left(queues: Queues) -> None:
    bodies = queues.park(30)
    begin = queues.clock.now
    queues.clock.cost = 25.0  # per call of SQS, which is as slow as never
    result = queues.redrive()
    assert queues.clock.now - begin < 600 + 25 * 4
    assert 0 < result["RedrivenCount"] < 30
    assert result["Remaining"] == 30 - result["RedrivenCount"]
    assert "time limit" in result["Summary"]
    assert queues.count(queues.dlq) == (result["Remaining"], 0)
    queues.clock.cost = None
    assert queues.redrive()["Remaining"] == 0
    assert counted(queues.drain(queues.input)) == Counter(bodies)


def test_letters_of_a_cause_that_is_not_mended_do_not_go_in_circles(queues: Queues) -> None:
    queues.park(3)
    queues.clock.cost = 1.0  # a run that goes in circles ends all the same
    # Each letter fails again at once.
    watch = Watch(queues.clock, on_sent=lambda body: queues.park(1))
    result = queues.redrive(watch)
    assert result["RedrivenCount"] == 3
    assert "3 came in meanwhile" in result["Summary"]
    assert result["Remaining"] == 0
    assert queues.count(queues.dlq) == (3, 0)


@pytest.mark.parametrize("number", range(3))
def test_every_dead_letter_queue_of_the_environment(queues: Queues, number: int) -> None:
    queues.dlq = queues.dlqs[number]
    queues.park(2)
    assert queues.redrive()["RedrivenCount"] == 2
    assert len(queues.drain(queues.input)) == 2


@pytest.mark.parametrize(
    ("dlq", "source", "named"),
    [
        # The seed's pairs, and further ones that do not belong together.
        ("ses-gmail-forwarder-dlq-{env}", "ses-gmail-forwarder-{env}", "ses-email-input-{env}"),
        ("ses-bouncer-dlq-{env}", "ses-bouncer-{env}", "ses-email-input-{env}"),
        ("ses-bouncer-dlq-{env}", "ses-bouncer-dlq-{env}", "ses-email-input-{env}"),
        ("ses-bouncer-dlq-{env}", "ses-email-input-prod", "ses-email-input-{env}"),
        ("ses-email-input-dlq-prod", "ses-email-input-{env}", "ses-email-input-dlq-{env}"),
        ("ses-email-input-{env}", "ses-email-input-{env}", "ses-bouncer-dlq-{env}"),
        ("", "ses-email-input-{env}", "ses-gmail-forwarder-dlq-{env}"),
    ],
)
def test_wrong_pair_is_refused(queues: Queues, dlq: str, source: str, named: str) -> None:
    queues.park(1)
    base = queues.input.rpartition("/")[0]
    urls = [f"{base}/{name.format(env=queues.environment)}" for name in (dlq, source)]
    with pytest.raises(ValueError, match=named.format(env=queues.environment)):
        queues.redrive(DLQUrl=urls[0], SourceQueueUrl=urls[1])
    assert queues.count(queues.dlq) == (1, 0)


def test_other_account_is_refused(queues: Queues) -> None:
    with pytest.raises(ValueError, match="takes no dead letters"):
        queues.redrive(SourceQueueUrl=queues.input.replace("123456789012", "210987654321"))


def test_old_form_of_a_url_is_taken(queues: Queues) -> None:
    queues.park(1)
    url = f"https://eu-north-1.queue.amazonaws.com/123456789012/{queues.input.split('/')[-1]}/"
    assert queues.redrive(SourceQueueUrl=url)["RedrivenCount"] == 1


def test_log_tells_progress_and_no_mail(queues: Queues, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = queues.park(60)
    queues.redrive(Watch(queues.clock, refused={bodies[0]}))
    log = capsys.readouterr().out
    assert "50 redriven, 1 failed" in log
    assert "59 redriven, 1 failed, 1 remaining" in log
    assert "stays in the queue: AWS.SimpleQueueService.NonExistentQueue" in log
    assert "letter" not in log
