"""The state machine interpreter behaves as AWS documents; fails loudly if a moto upgrade moves what
the adapter replaces."""

import importlib.metadata
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from local import strict
from local.asl import TASK_TIMEOUT_FLOOR, Interpreter, NothingError, evaluate, iso
from local.patches import Patches

Run = Callable[..., dict[str, Any]]
REGION = "ap-southeast-2"


def test_moto_is_the_version_whose_private_names_are_replaced():
    assert importlib.metadata.version("moto") == "5.2.5"


@pytest.mark.parametrize(
    ("expression", "variables", "value"),
    [
        ("$states.input.a", {"states": {"input": {"a": 'say "hi" \\ \n'}}}, 'say "hi" \\ \n'),
        ("$text", {"text": 'quo"te and \\'}, 'quo"te and \\'),
        ("$states.input.a", {"states": {"input": {"a": None}}}, None),
        (
            "$states.input",
            {"states": {"input": {"a": None, "b": [None]}}},
            {"a": None, "b": [None]},
        ),
        ("$merge([$a, {'b': 1}])", {"a": {"n": None}}, {"n": None, "b": 1}),
        # What the state machine relies on for what may be absent: as jsonata 2.0.6 in JavaScript.
        ("$nothing.a & ''", {}, ""),
        ("[$nothing.a, $nothing.b, ''][0]", {}, ""),
        ("[$nothing.a, $b, ''][0]", {"b": {"c": 1}}, {"c": 1}),
        ("$sum([$nothing.a, 1])", {}, 1),
        ("$merge([$nothing.a, {'b': 1}])", {}, {"b": 1}),
        ("[$merge([$a, $nothing.a]).b]", {"a": {"b": ["x"]}}, ["x"]),
        ("[$merge([$a, $b]).b]", {"a": {"b": ["x", "y"]}, "b": {"b": ["x"]}}, ["x"]),
        ("$substring($nothing.a & '', 0, 2)", {}, ""),
        ("{'a': 1, 'b': $nothing.c}", {}, {"a": 1}),
        ("$items[n > 1].n", {"items": [{"n": 1}, {"n": 2}]}, 2),  # one element collapses
        ("[$items[n > 1].n]", {"items": [{"n": 1}, {"n": 2}]}, [2]),
        ("[$items[n > 5].n]", {"items": [{"n": 1}]}, []),
        ("[1..3]", {}, [1, 2, 3]),
        ("$partition([1, 2, 3], 2)", {}, [[1, 2], [3]]),
        ("$range(1, 7, 3)", {}, [1, 4, 7]),
        ("$parse('{\"a\": [1]}').a", {}, [1]),
        ("$hash('a', 'MD5')", {}, "0cc175b9c0f1b6a831c399e269772661"),
        ("$substring('abcdef', 0, 3)", {}, "abc"),
        ("$length($uuid())", {}, 36),
        ("$millis()", {}, 1795000000123),
        ("$now()", {}, "2026-11-18T11:06:40.123Z"),
    ],
)
def test_expressions(expression, variables, value):
    assert evaluate(expression, variables, now=lambda: 1795000000.123) == value


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("$states.input.missing", NothingError),
        ("$nothing", NothingError),
        ("$", NothingError),  # AWS knows no implicit input
        ("$eval('1')", TypeError),
        ("function($x) { $x }", TypeError),
        ("1 + 'a'", Exception),
    ],
)
def test_expressions_that_fail(expression, error):
    with pytest.raises(error):
        evaluate(expression, {"states": {"input": {}}})


def test_iso():
    assert iso(0.5) == "1970-01-01T00:00:00.500Z"


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs one state machine, given as its states, and returns DescribeExecution."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    patches = Patches()
    strict.install(patches)
    refused: list[str] = []

    def guard(service: str, operation: str, params: Any) -> None:
        if service in refused:
            raise PermissionError(f"{service}:{operation}")

    interpreter = Interpreter(0.01, time.time, endpoint, REGION, guard)
    interpreter.install()

    def client(name: str) -> Any:
        return boto3.client(
            name,
            region_name=REGION,
            endpoint_url=endpoint,
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )

    sfn = client("stepfunctions")
    import urllib.request

    urllib.request.urlopen(
        urllib.request.Request(
            f"{endpoint}/moto-api/config",
            json.dumps({"stepfunctions": {"execute_state_machine": True}}).encode(),
            method="POST",
        )
    )
    numbers = iter(range(1_000_000))

    def start(states: dict[str, Any], input_: Any = None) -> str:
        definition = {"QueryLanguage": "JSONata", "StartAt": next(iter(states)), "States": states}
        arn = sfn.create_state_machine(
            name=f"machine-{next(numbers)}",
            definition=json.dumps(definition),
            roleArn="arn:aws:iam::123456789012:role/r",
        )["stateMachineArn"]
        return sfn.start_execution(stateMachineArn=arn, name="e", input=json.dumps(input_ or {}))[
            "executionArn"
        ]

    def finish(arn: str) -> dict[str, Any]:
        while (described := sfn.describe_execution(executionArn=arn))["status"] == "RUNNING":
            time.sleep(0.01)
        described["history"] = [
            event["type"] for event in sfn.get_execution_history(executionArn=arn)["events"]
        ]
        if "output" in described:
            described["output"] = json.loads(described["output"])
        return described

    def run(states: dict[str, Any], input_: Any = None) -> dict[str, Any]:
        return finish(start(states, input_))

    run.start, run.finish, run.client, run.refused = start, finish, client, refused  # type: ignore
    yield run
    interpreter.uninstall()
    patches.undo()
    server.stop()


def send(arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::sqs:sendMessage",
        "Arguments": arguments,
        **more,
    }


def test_assign_takes_effect_after_output(run):
    states = {
        "First": {"Type": "Pass", "Assign": {"x": "old"}, "Next": "Second"},
        "Second": {
            "Type": "Pass",
            "Assign": {"x": 'new " \\'},
            "Output": {"during": "{% $x %}"},
            "Next": "Third",
        },
        "Third": {
            "Type": "Pass",
            "Output": "{% $merge([$states.input, {'after': $x}]) %}",
            "End": True,
        },
    }
    assert run(states)["output"] == {"during": "old", "after": 'new " \\'}


def test_nothing_is_a_query_evaluation_error(run):
    states = {"A": {"Type": "Pass", "Output": {"a": "{% $states.input.b %}"}, "End": True}}
    failed = run(states)
    assert (failed["status"], failed["error"]) == ("FAILED", "States.QueryEvaluationError")
    assert "returned nothing" in failed["cause"]


def test_context_is_json(run):
    states = {"A": {"Type": "Pass", "Output": "{% $states.context.Execution %}", "End": True}}
    execution = run(states, {"a": 1})["output"]
    assert execution["Name"] == "e"
    assert execution["Input"] == {"a": 1}
    assert execution["StartTime"].endswith("Z")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"MessageBody": "\ufffe"}, "Invalid characters"),
        ({"MessageBody": "\x00"}, "Invalid characters"),
        (
            {
                "MessageBody": "ok",
                "MessageAttributes": {"Error": {"DataType": "String", "StringValue": ""}},
            },
            "non-empty",
        ),
        (
            {
                "MessageBody": "ok",
                "MessageAttributes": {"Error": {"DataType": "String", "StringValue": "a\x01b"}},
            },
            "invalid characters",
        ),
    ],
)
def test_sqs_refuses_what_aws_refuses(run, arguments, why):
    url = run.client("sqs").create_queue(QueueName="q")["QueueUrl"]
    catch = [
        {"ErrorEquals": ["States.ALL"], "Next": "Caught", "Output": "{% $states.errorOutput %}"}
    ]
    states = {
        "Send": send({"QueueUrl": url, **arguments}, Catch=catch, End=True),
        "Caught": {"Type": "Succeed"},
    }
    caught = run(states)["output"]
    assert caught["Error"] == "SQS.SdkClientException"
    assert why in caught["Cause"]


def test_retries_wait_in_the_clouds_time(run):
    retry = [
        {
            "ErrorEquals": ["States.ALL"],
            "IntervalSeconds": 10,
            "MaxAttempts": 3,
            "BackoffRate": 2,
            "JitterStrategy": "FULL",
        }
    ]
    catch = [{"ErrorEquals": ["States.ALL"], "Next": "Caught"}]
    url = "http://127.0.0.1/123456789012/missing"
    states = {
        "Send": send({"QueueUrl": url, "MessageBody": "a"}, Retry=retry, Catch=catch, End=True),
        "Caught": {"Type": "Succeed"},
    }
    assert run(states)["history"].count("TaskScheduled") == 4


def test_a_wait_is_shortened(run):
    states = {"Wait": {"Type": "Wait", "Seconds": 20, "Next": "End"}, "End": {"Type": "Succeed"}}
    assert run(states)["status"] == "SUCCEEDED"


def test_too_much_state_cannot_be_caught(run):
    states = {
        "Map": {
            "Type": "Map",
            "Items": "{% [1..300] %}",
            "ItemProcessor": {
                "StartAt": "Grow",
                "States": {
                    "Grow": {"Type": "Pass", "Output": "{% $pad('', 1000, 'x') %}", "End": True}
                },
            },
            "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "Caught"}],
            "End": True,
        },
        "Caught": {"Type": "Succeed"},
    }
    failed = run(states)
    assert (failed["status"], failed["error"]) == ("FAILED", "States.DataLimitExceeded")


def test_arguments_over_256_kib_cannot_be_caught(run):
    url = run.client("sqs").create_queue(QueueName="big")["QueueUrl"]
    catch = [{"ErrorEquals": ["States.ALL"], "Next": "Caught"}]
    for length, error in (262_000, None), (262_200, "States.DataLimitExceeded"):
        body = f"{{% $pad('', {length - len(url) - 35}, 'x') %}}"
        states = {
            "Send": send({"QueueUrl": url, "MessageBody": body}, Catch=catch, End=True),
            "Caught": {"Type": "Succeed"},
        }
        states["Send"]["Output"] = {"done": True}
        assert run(states).get("error") == error


@pytest.mark.parametrize("field", ["Output", "Assign"])
def test_a_task_whose_result_lacks_something_is_retried_and_caught(run, field):
    url = run.client("sqs").create_queue(QueueName="q")["QueueUrl"]
    broken = {"bad": "{% $states.result.nothing %}"}
    states = {
        "Begin": {"Type": "Pass", "Assign": {"good": "old"}, "Next": "Send"},
        "Send": send(
            {"QueueUrl": url, "MessageBody": "a"},
            **{"Assign": {"good": "new"}, field: {"good": "new", **broken}},
            Retry=[{"ErrorEquals": ["States.ALL"], "IntervalSeconds": 1, "MaxAttempts": 1}],
            Catch=[
                {
                    "ErrorEquals": ["States.ALL"],
                    "Assign": {"why": "{% $states.errorOutput.Error %}"},
                    "Output": "{% $states.input %}",
                    "Next": "Caught",
                }
            ],
            End=True,
        ),
        "Caught": {
            "Type": "Succeed",
            "Output": "{% $merge([$states.input, {'v': [$good, $why]}]) %}",
        },
    }
    ended = run(states, {"in": 1})
    assert ended["output"] == {"in": 1, "v": ["old", "States.QueryEvaluationError"]}
    assert ended["history"].count("TaskScheduled") == 2


def test_the_role_of_the_state_machine_is_asked(run):
    run.refused.append("sqs")
    try:
        url = run.client("sqs").create_queue(QueueName="q")["QueueUrl"]
        failed = run({"Send": send({"QueueUrl": url, "MessageBody": "a"}, End=True)})
    finally:
        run.refused.clear()
    assert failed["status"] == "FAILED"
    assert "sqs:SendMessage" in failed["cause"]


def test_200_executions_at_once(run):
    item = {"Type": "Pass", "Output": "{% $states.input + 1 %}", "End": True}
    states = {
        "Map": {
            "Type": "Map",
            "Items": "{% $states.input.items %}",
            "ItemProcessor": {"StartAt": "Add", "States": {"Add": item}},
            "End": True,
        }
    }
    arn = run.client("stepfunctions").create_state_machine(
        name="many",
        definition=json.dumps({"QueryLanguage": "JSONata", "StartAt": "Map", "States": states}),
        roleArn="arn:aws:iam::123456789012:role/r",
    )["stateMachineArn"]
    started: list[str] = []

    def some(first: int) -> None:
        sfn = run.client("stepfunctions")
        for number in range(first, first + 20):
            execution = sfn.start_execution(
                stateMachineArn=arn, name=f"e{number}", input=json.dumps({"items": [number, 0]})
            )
            started.append(execution["executionArn"])

    threads = [threading.Thread(target=some, args=(first,)) for first in range(0, 200, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = [run.finish(execution)["output"] for execution in started]
    assert sorted(outputs) == [[number + 1, 1] for number in range(200)]


def test_tasks_get_real_time_to_work():
    assert TASK_TIMEOUT_FLOOR >= 10
