"""The target of the pipe, from the batch to the executions."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import starter
from ses_mail import clients
from ses_mail.dead_letters import MESSAGE_LENGTH

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.lambda_ import LambdaContext, Logs

Run = Callable[..., list[str]]
ANNA, INFO = "anna+news@example.com", "info@example.com"


@pytest.fixture
def run(aws: "Aws", context: "LambdaContext", logs: "Logs", monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(body, body, …)`: the identifiers of what failed, the first message being `m0`."""
    monkeypatch.setenv("STATE_MACHINE_ARN", aws.state_machine_arn)
    monkeypatch.setenv("INPUT_DLQ_URL", aws.input_dlq_url)

    def invoke(*bodies: Any) -> list[str]:
        records = [
            {"messageId": f"m{n}", "body": body if isinstance(body, str) else json.dumps(body)}
            for n, body in enumerate(bodies)
        ]
        answer = starter.handler(records, context)
        return [item["itemIdentifier"] for item in answer["batchItemFailures"]]

    return invoke


@pytest.fixture
def notification(event: Callable[..., Any]) -> dict[str, Any]:
    return event("ses-notification")


def for_recipients(notification: dict[str, Any], *recipients: str) -> dict[str, Any]:
    return {
        **notification,
        "receipt": {**notification["receipt"], "recipients": list(recipients)},
    }


def message_id(notification: dict[str, Any]) -> str:
    return str(notification["mail"]["messageId"])


def test_the_sample_event(
    run: Run, aws: "Aws", event: Callable[..., Any], context: "LambdaContext", logs: "Logs"
) -> None:
    records = event("starter")
    assert json.loads(records[0]["body"]) == event("ses-notification")
    assert starter.handler(records, context) == {"batchItemFailures": []}
    name = message_id(event("ses-notification"))
    executions = aws.executions()
    first, second = sorted(executions)
    assert first == name
    assert second.startswith(f"{name}-1-")
    assert set(executions[first]) == {"mail", "receipt"}
    assert set(executions[second]) == {"mail", "receipt", "redrive"}
    assert logs.metrics() == {"StartsStarted": 2}
    lines = logs.read("Start result")
    executions_of = aws.state_machine_arn.replace(":stateMachine:", ":execution:")
    assert [(x["result"], x["messageId"], x["executionArn"]) for x in lines] == [
        ("started", name, f"{executions_of}:{first}"),
        ("started", name, f"{executions_of}:{second}"),
    ]
    assert [x["sqsMessageId"] for x in lines] == [r["messageId"] for r in records]
    assert {x["aws_request_id"] for x in lines} == {context.aws_request_id}


def test_a_duplicate_is_dropped(run: Run, aws: "Aws", notification: Any, logs: "Logs") -> None:
    envelope = {"Type": "Notification", "Message": json.dumps(notification), "MessageId": "x"}
    reordered = for_recipients(notification, INFO.upper(), ANNA)
    assert run(notification, notification, envelope) == []
    assert run(reordered) == []
    assert list(aws.executions()) == [message_id(notification)]
    results = [line["result"] for line in logs.read("Start result")]
    assert results[0] == "started"
    assert results[3] == "duplicate"


def test_other_recipients_under_one_message_id(run: Run, aws: "Aws", notification: Any) -> None:
    """SES sends one notification per matching receipt rule, each with that rule's recipients."""
    one, other = for_recipients(notification, ANNA), for_recipients(notification, INFO)
    assert run(one, other) == []
    assert run(other, one) == []
    executions = aws.executions()
    first, second = sorted(executions)
    assert first == message_id(notification)
    assert second.startswith(f"{first}-0-")
    assert executions[first]["receipt"]["recipients"] == [ANNA]
    assert executions[second]["receipt"]["recipients"] == [INFO]


def test_redrives(run: Run, aws: "Aws", notification: Any) -> None:
    redrive = {"attempt": 1, "recipients": [INFO]}
    letter = {**notification, "redrive": redrive, "failure": {"error": "GmailTokenError"}}
    assert run(notification, letter, letter) == []
    assert run({**letter, "failure": {"error": "another"}}) == []
    assert run({**letter, "redrive": {**redrive, "recipients": [INFO.upper()]}}) == []
    assert len(aws.executions()) == 2
    assert run({**letter, "redrive": {**redrive, "attempt": 2}}) == []
    assert run({**letter, "redrive": {**redrive, "force": "nonce"}}) == []
    executions = aws.executions()
    assert [n.rsplit("-", 2)[1] for n in sorted(executions) if "-" in n] == ["1", "1", "2"]
    assert not any("failure" in execution for execution in executions.values())


def test_the_set_up_message_of_ses(run: Run, aws: "Aws", notification: Any, logs: "Logs") -> None:
    notification["mail"]["messageId"] = "AMAZON_SES_SETUP_NOTIFICATION"
    assert run(notification) == []
    assert aws.executions() == {}
    assert aws.dead_letters() == []
    assert logs.metrics() == {"StartsIgnored": 1}


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("hello", "not JSON"),
        ("", "not JSON"),
        ('{"a": "\x00\ufffe"}', "not JSON"),
        ('{"mail": {"messageId": "\\ufffe\\u0001"}, "receipt": {}}', "not printable text"),
        ("{}", "`mail` or `receipt` is missing"),
        ('{"notificationType": "Bounce"}', "notificationType is 'Bounce'"),
    ],
)
def test_bad_input_is_parked_with_its_reason(
    run: Run, aws: "Aws", notification: Any, logs: "Logs", body: str, cause: str
) -> None:
    assert run(body, notification) == [], "behind a pipe it would come again a hundred times"
    assert list(aws.executions()) == [message_id(notification)]
    (letter,) = aws.dead_letters()
    assert letter["body"]["original"] == body
    failure = letter["body"]["failure"]
    assert (failure["action"], failure["error"]) == ("start", "InvalidNotificationError")
    assert cause in failure["cause"]
    assert {n: a["StringValue"] for n, a in letter["MessageAttributes"].items()} == {
        "Action": "start",
        "Error": "InvalidNotificationError",
    }
    assert logs.metrics() == {"StartsParked": 1, "StartsStarted": 1}
    assert cause in logs.read("Start result")[0]["reason"]


def test_a_parked_message_is_unwrapped_when_it_comes_back(
    run: Run, aws: "Aws", notification: Any
) -> None:
    parked = {"original": json.dumps(notification), "failure": {"action": "start"}}
    assert run(parked) == []
    assert list(aws.executions()) == [message_id(notification)]


def test_what_is_too_long_with_its_failure_is_parked_as_it_came(run: Run, aws: "Aws") -> None:
    body = json.dumps({"x": '"' * (MESSAGE_LENGTH // 2 - 100)})
    assert run(body) == []
    assert aws.dead_letters()[0]["Body"] == body


@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException"])
def test_one_failure_does_not_take_the_batch_with_it(
    run: Run, aws: "Aws", notification: Any, logs: "Logs", code: str
) -> None:
    bad = {**notification, "mail": {**notification["mail"], "messageId": "fails"}}

    def refuse(request: Any, **_: Any) -> Any:
        if json.loads(request.body)["name"] == "fails":
            raise clients.stepfunctions().exceptions.ClientError(
                {"Error": {"Code": code, "Message": "injected"}}, "StartExecution"
            )

    events = clients.stepfunctions().meta.events
    events.register("before-send.stepfunctions.StartExecution", refuse)
    try:
        assert run("hello", bad, notification) == ["m1"]
    finally:
        events.unregister("before-send.stepfunctions.StartExecution", refuse)
    assert list(aws.executions()) == [message_id(notification)]
    assert logs.metrics() == {"StartsParked": 1, "StartsFailed": 1, "StartsStarted": 1}
    (line,) = logs.read("Start failed")
    assert (line["error"], line["sqsMessageId"], line["messageId"]) == (code, "m1", "fails")


def test_a_dead_letter_queue_that_refuses(run: Run, aws: "Aws", notification: Any) -> None:
    aws.wire.answer("sqs.SendMessage", 400, "AccessDenied")
    assert run("hello", notification) == ["m0"]


def test_describe_execution_lags(run: Run, aws: "Aws", notification: Any) -> None:
    assert run(for_recipients(notification, ANNA)) == []
    aws.wire.answer("stepfunctions.DescribeExecution", 400, "ExecutionDoesNotExist", times=1)
    other = for_recipients(notification, INFO)
    assert run(other) == ["m0"], "it comes again"
    assert run(other) == []
    assert len(aws.executions()) == 2


def test_every_name_is_taken(run: Run, aws: "Aws", notification: Any, logs: "Logs") -> None:
    """Two sets of recipients with one hash: nothing is dropped, it ends in the queue's DLQ."""

    def another_input(parsed: dict[str, Any]) -> None:
        parsed["input"] = json.dumps({"receipt": {"recipients": ["x@example.com"]}})

    aws.wire.answer("stepfunctions.StartExecution", 400, "ExecutionAlreadyExists")
    assert run(for_recipients(notification, ANNA)) == ["m0"]
    aws.wire.cut()
    run(for_recipients(notification, ANNA), for_recipients(notification, INFO))
    aws.wire.answer("stepfunctions.StartExecution", 400, "ExecutionAlreadyExists")
    aws.wire.change("stepfunctions.DescribeExecution", another_input)
    assert run(for_recipients(notification, INFO)) == ["m0"]
    assert logs.read("Start failed")[-1]["error"] == "RuntimeError"


def test_an_answer_that_gets_lost_starts_nothing_twice(
    run: Run, aws: "Aws", notification: Any
) -> None:
    aws.wire.lose_answer("stepfunctions.StartExecution", times=1)
    assert run(notification) == []
    assert list(aws.executions()) == [message_id(notification)]


def test_nothing_private_is_logged(run: Run, notification: Any, logs: "Logs") -> None:
    notification["mail"]["commonHeaders"]["subject"] = "confidential"
    assert run(notification) == []
    assert "confidential" not in logs.text()
    assert "jane" not in logs.text()


def test_an_empty_batch(run: Run) -> None:
    assert run() == []


def test_sent_back_unmended_it_is_parked_as_it_was(run: Run, aws: "Aws") -> None:
    """Not wrapped once more: each round would double the backslashes of the last."""
    body = 'not "JSON" \\ at all'
    for _ in range(3):
        assert run(body) == []
        (letter,) = aws.dead_letters()
        clients.sqs().delete_message(
            QueueUrl=aws.input_dlq_url, ReceiptHandle=letter["ReceiptHandle"]
        )
        assert letter["body"]["original"] == 'not "JSON" \\ at all'
        body = json.dumps(letter["body"])
