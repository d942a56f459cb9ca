"""What is parked of executions that died where no Catch reaches."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sweeper
from ses_mail import clients, sweep
from ses_mail.start import Starter
from ses_mail.tables import TableBusyError

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.lambda_ import LambdaContext, Logs

SCHEDULED = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
Sweep = Callable[..., list[str]]


@pytest.fixture
def run(
    aws: "Aws", context: "LambdaContext", logs: "Logs", monkeypatch: pytest.MonkeyPatch
) -> Sweep:
    """`run()`: the hourly run; `run(arn)`: as the execution's status change calls it;
    `run(hours=…)`: as an operator calls it."""
    monkeypatch.setenv("STATE_MACHINE_ARN", aws.state_machine_arn)
    monkeypatch.setenv("DELIVERIES_TABLE", aws.deliveries_table)
    monkeypatch.setenv("INPUT_DLQ_URL", aws.input_dlq_url)

    def invoke(arn: str = "", **more: Any) -> list[str]:
        event = {"detail": {"executionArn": arn}} if arn else {**SCHEDULED, **more}
        return list(sweeper.handler(event, context)["swept"])

    return invoke


@pytest.fixture(autouse=True)
def moto_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto stamps executions with the real time."""
    monkeypatch.setattr("ses_mail.clock.now", lambda: datetime.now(UTC).timestamp())


@pytest.fixture
def notification(event: Callable[..., Any]) -> dict[str, Any]:
    return event("ses-notification")


def start(aws: "Aws", message: Any, stop: bool = True, name: str = "") -> str:
    """Start an execution as the starter does (or under a name of one's own), and abort it."""
    if name:
        clients.stepfunctions().start_execution(
            stateMachineArn=aws.state_machine_arn, name=name, input=json.dumps(message)
        )
    else:
        starter = Starter(
            stepfunctions=clients.stepfunctions(),
            sqs=clients.sqs(),
            state_machine_arn=aws.state_machine_arn,
            input_dlq_url=aws.input_dlq_url,
            identified=lambda message_id: None,
        )
        name = starter.start(json.dumps(message)).execution_arn.rpartition(":")[2]
    arn = f"{aws.state_machine_arn.replace(':stateMachine:', ':execution:')}:{name}"
    if stop:
        clients.stepfunctions().stop_execution(executionArn=arn, error="Why", cause="Because")
    return arn


def test_an_aborted_execution_is_parked_once_and_can_be_sent_back(
    run: Sweep, aws: "Aws", notification: dict[str, Any], logs: "Logs"
) -> None:
    arn = start(aws, notification)
    assert run(arn) == [arn]
    assert run(arn) == []
    assert run() == []
    (line,) = logs.read("Execution swept")
    message_id = notification["mail"]["messageId"]
    assert (line["messageId"], line["executionArn"], line["error"]) == (message_id, arn, "ABORTED")
    assert logs.metrics() == {"Swept": 1}
    (letter,) = aws.dead_letters()
    body = letter["body"]
    recipients = notification["receipt"]["recipients"]
    assert body["redrive"] == {"attempt": 1, "recipients": recipients}
    assert body["failure"] | {"at": ""} == {
        "action": "execution",
        "target": "",
        "matchedRule": "",
        "recipients": recipients,
        "error": "ABORTED",
        "cause": body["failure"]["cause"],
        "executionArn": arn,
        "at": "",
    }
    attributes = {n: v["StringValue"] for n, v in letter["MessageAttributes"].items()}
    assert attributes == {
        "MessageId": notification["mail"]["messageId"],
        "Action": "execution",
        "Error": "ABORTED",
    }
    redriven = start(aws, body)
    assert redriven != arn, "under the old name it would be dropped as a duplicate"


def test_the_hourly_run_finds_what_no_event_told(
    run: Sweep, aws: "Aws", notification: dict[str, Any]
) -> None:
    notification["mail"]["messageId"] = "hourly0"
    dead = start(aws, notification)
    notification["mail"]["messageId"] = "hourly1"
    start(aws, notification, stop=False)
    assert run() == [dead]


def test_a_redrive_keeps_its_fields_and_counts_on(
    run: Sweep, aws: "Aws", notification: dict[str, Any]
) -> None:
    one = notification["receipt"]["recipients"][:1]
    old = {"attempt": 3, "recipients": one, "force": "again", "ignoreVerdicts": True, "note": "x"}
    arn = start(aws, {**notification, "redrive": old})
    assert run(arn) == [arn]
    assert aws.dead_letters()[0]["body"]["redrive"] == {**old, "attempt": 4}


def test_a_mark_of_the_workflow_is_respected(
    run: Sweep, aws: "Aws", notification: dict[str, Any]
) -> None:
    arn = start(aws, notification)
    message_id = notification["mail"]["messageId"]
    aws.put_delivery({"PK": f"EMAIL#{message_id}", "SK": f"PARKED#{arn.rpartition(':')[2]}"})
    assert run(arn) == run() == []
    assert aws.dead_letters() == []


def test_an_execution_named_by_hand_is_found_by_its_input(
    run: Sweep, aws: "Aws", notification: dict[str, Any]
) -> None:
    arn = start(aws, notification, name="from-the-console")
    message_id = notification["mail"]["messageId"]
    aws.put_delivery({"PK": f"EMAIL#{message_id}", "SK": "PARKED#from-the-console"})
    assert run(arn) == []
    other = start(aws, notification, name="from-the-console-again")
    assert run(other) == [other]
    assert set(aws.deliveries()) >= {"PARKED#from-the-console-again"}


def test_input_that_is_no_email_is_parked_as_it_is(run: Sweep, aws: "Aws") -> None:
    arn = start(aws, {"hello": "world"}, name="no-email")
    assert run(arn) == [arn]
    body = aws.dead_letters()[0]["body"]
    assert json.loads(body["original"]) == {"hello": "world"}
    assert body["failure"]["error"] == "ABORTED"


def test_one_that_still_runs_is_an_error_and_the_others_are_swept(
    run: Sweep, aws: "Aws", notification: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(aws, notification, stop=False)
    with pytest.raises(sweeper.SweepFailedError, match="could not be swept"):
        run(running)
    notification["mail"]["messageId"] = "other"
    dead = start(aws, notification)
    monkeypatch.setattr(sweep.Sweeper, "recently_dead", lambda *_: [running, dead])
    with pytest.raises(sweeper.SweepFailedError):
        run()
    assert [letter["body"]["mail"]["messageId"] for letter in aws.dead_letters()] == ["other"]


def test_one_that_succeeded_after_all_is_left_alone(
    run: Sweep, aws: "Aws", notification: dict[str, Any]
) -> None:
    arn = start(aws, notification)
    aws.wire.change("stepfunctions.DescribeExecution", lambda d: d.update(status="SUCCEEDED"))
    assert run(arn) == []


def test_parking_that_fails_leaves_no_mark(
    run: Sweep, aws: "Aws", notification: dict[str, Any], logs: "Logs"
) -> None:
    arn = start(aws, notification)
    aws.wire.answer("sqs.SendMessage", 400, "AccessDenied", times=1)
    with pytest.raises(sweeper.SweepFailedError):
        run(arn)
    (line,) = logs.read("Sweep failed")
    assert (line["executionArn"], line["error"]) == (arn, "AccessDenied")
    assert "SendMessage" in line["cause"]
    assert aws.deliveries() == {}
    assert run() == [arn]


def test_marks_that_stay_unread_are_an_error(
    run: Sweep, aws: "Aws", notification: dict[str, Any]
) -> None:
    arn = start(aws, notification)
    table = aws.deliveries_table

    def unread(answer: dict[str, Any]) -> None:
        name = arn.rpartition(":")[2]
        key = {"PK": {"S": f"EMAIL#{name}"}, "SK": {"S": f"PARKED#{name}"}}
        answer.update(Responses={}, UnprocessedKeys={table: {"Keys": [key]}})

    aws.wire.change("dynamodb.BatchGetItem", unread)
    with pytest.raises(TableBusyError):
        run(arn)


def test_out_of_time_it_stops_and_the_next_run_goes_on(
    run: Sweep, aws: "Aws", notification: dict[str, Any], context: "LambdaContext"
) -> None:
    start(aws, notification)
    context.milliseconds = 1_000
    assert run() == []
    context.milliseconds = 300_000
    assert len(run()) == 1


def test_what_stopped_longer_ago_is_only_looked_at_when_asked(
    run: Sweep, aws: "Aws", notification: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = start(aws, notification)
    for hours in (4, 100):
        later = datetime.now(UTC).timestamp() + hours * 3600
        monkeypatch.setattr("ses_mail.clock.now", lambda later=later: later)
        assert run() == run(hours=hours - 0.5) == []
    assert run(hours=101) == [dead]


@pytest.mark.parametrize("days", [1, 6, 80])
def test_what_stopped_just_now_is_seen_however_long_ago_it_started(
    run: Sweep, aws: "Aws", notification: dict[str, Any], days: int
) -> None:
    """A hundred forwards of one email, 40 at a time, may wait for six days."""
    dead = start(aws, notification)

    def started_before(answer: dict[str, Any]) -> None:
        for execution in answer["executions"]:
            execution["startDate"] -= timedelta(days=days)

    aws.wire.change("stepfunctions.ListExecutions", started_before)
    assert run() == [dead]


def test_the_sample_event_names_an_execution(event: Callable[..., Any]) -> None:
    sample = event("sweeper")
    assert sample["detail"]["executionArn"] == sample["resources"][0]
