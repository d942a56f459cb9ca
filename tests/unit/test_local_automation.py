"""The embedded SSM Automation: what it refuses, runs, stops and shows, as AWS does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.automation import given, selected, substituted
from local.cloud import Cloud

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, time
import boto3

def main(request, context):
    print("hello")
    return globals()[request["do"]](request)

def answer(request):
    return {"Text": request["text"], "Number": 7}

def fail(request):
    raise KeyError("no such thing")

def clocks(request):
    before = time.time(), time.monotonic()
    time.sleep(float(request["text"]))
    passed = time.time() - before[0], time.monotonic() - before[1]
    return {"Text": json.dumps(passed), "Number": 1}

def wait(request):
    boto3.client("sqs").get_queue_attributes(QueueUrl=request["text"], AttributeNames=["All"])
    while True:
        pass

def call(request):
    boto3.client("sqs").purge_queue(QueueUrl=request["text"])
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud(ROOT, time_factor=0.01) as running:
        role = running.stack.attribute("DlqRedriveRole", "Arn")
        running.client("ssm").create_document(
            Name="Own",
            DocumentType="Automation",
            DocumentFormat="JSON",
            Content=json.dumps(document(role)),
        )
        yield running


def document(role: str) -> dict[str, Any]:
    return {
        "schemaVersion": "0.3",
        "assumeRole": role,
        "parameters": {
            "Do": {"type": "String", "default": "answer"},
            "Text": {"type": "String", "allowedPattern": "^[^!]*$"},
        },
        "outputs": ["Only.Text", "Only.Number"],
        "mainSteps": [
            {
                "name": "Only",
                "action": "aws:executeScript",
                "timeoutSeconds": 600,
                "inputs": {
                    "Runtime": "python3.11",
                    "Handler": "main",
                    "InputPayload": {"do": "{{ Do }}", "text": "{{Text}}"},
                    "Script": SCRIPT,
                },
                "outputs": [
                    {"Name": "Text", "Selector": "$.Payload.Text", "Type": "String"},
                    {"Name": "Number", "Selector": "$.Payload.Number", "Type": "Integer"},
                ],
            }
        ],
    }


def start(cloud: Cloud, name: str = "Own", **parameters: str) -> str:
    answer = cloud.client("ssm").start_automation_execution(
        DocumentName=name, Parameters={key: [value] for key, value in parameters.items()}
    )
    return str(answer["AutomationExecutionId"])


def look(cloud: Cloud, key: str) -> dict[str, Any]:
    answer = cloud.client("ssm").get_automation_execution(AutomationExecutionId=key)
    return dict(answer["AutomationExecution"])


def ended(cloud: Cloud, key: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while (execution := look(cloud, key))["AutomationExecutionStatus"] == "InProgress":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return execution


def test_success(cloud: Cloud) -> None:
    key = start(cloud, Text='a "b" \\ {{ Do }} é')
    assert look(cloud, key)["AutomationExecutionStatus"] == "InProgress"
    execution = ended(cloud, key)
    assert execution["AutomationExecutionStatus"] == "Success"
    # Texts, all of them, under the names of step and output.
    assert execution["Outputs"] == {
        "Only.Text": ['a "b" \\ {{ Do }} é'],
        "Only.Number": ["7"],
    }
    assert execution["Parameters"] == {"Do": ["answer"], "Text": ['a "b" \\ {{ Do }} é']}
    (step,) = execution["StepExecutions"]
    (payload,) = step["Outputs"]["OutputPayload"]
    assert json.loads(payload)["ExecutionLog"] == "hello\n"
    assert execution["ExecutionEndTime"] >= execution["ExecutionStartTime"]


def test_failure_names_the_error(cloud: Cloud) -> None:
    execution = ended(cloud, start(cloud, Do="fail", Text="a"))
    assert execution["AutomationExecutionStatus"] == "Failed"
    assert "KeyError: 'no such thing'" in execution["FailureMessage"]
    assert execution["Outputs"] == {}


def test_role_of_the_document_is_enforced(cloud: Cloud) -> None:
    # The rights are DlqRedriveRole's, which may look at this queue and at no other.
    execution = ended(cloud, start(cloud, Do="wait", Text=cloud.resource("InputQueue")))
    assert "sqs:GetQueueAttributes" in execution["FailureMessage"]
    assert "not authorized" in execution["FailureMessage"]


def test_call_that_nobody_wrote_the_rights_of_down(cloud: Cloud) -> None:
    execution = ended(cloud, start(cloud, Do="call", Text=cloud.resource("InputDlq")))
    assert "local/iam.py does not know what sqs:PurgeQueue needs" in execution["FailureMessage"]


def test_sleeps_are_short_and_the_scripts_clock_says_long(cloud: Cloud) -> None:
    execution = ended(cloud, start(cloud, Do="clocks", Text="400"))
    wall, monotonic = json.loads(execution["Outputs"]["Only.Text"][0])
    assert wall >= 400
    assert monotonic >= 400
    took = execution["ExecutionEndTime"] - execution["ExecutionStartTime"]
    assert took.total_seconds() < 300


def test_stopped(cloud: Cloud) -> None:
    key = start(cloud, Do="wait", Text=cloud.resource("InputDlq"))
    cloud.client("ssm").stop_automation_execution(AutomationExecutionId=key)
    assert look(cloud, key)["AutomationExecutionStatus"] == "Cancelled"
    cloud.wait_idle()
    assert look(cloud, key)["AutomationExecutionStatus"] == "Cancelled"
    with pytest.raises(ClientError, match="InvalidAutomationStatusUpdateException"):
        cloud.client("ssm").stop_automation_execution(AutomationExecutionId=key)


def test_time_limit(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.automation, "floor", 1.0)
    execution = ended(cloud, start(cloud, Do="wait", Text=cloud.resource("InputDlq")))
    assert execution["AutomationExecutionStatus"] == "TimedOut"
    assert "timed out after 600.00 seconds" in execution["FailureMessage"]


@pytest.mark.parametrize(
    ("name", "parameters", "code"),
    [
        ("Nobody", {}, "AutomationDefinitionNotFoundException"),
        ("Own", {}, "InvalidAutomationExecutionParametersException"),
        ("Own", {"Text": ["a"], "Txt": ["a"]}, "InvalidAutomationExecutionParametersException"),
        ("Own", {"Text": ["a", "b"]}, "InvalidAutomationExecutionParametersException"),
        ("Own", {"Text": ["a!"]}, "InvalidAutomationExecutionParametersException"),
    ],
)
def test_start_that_is_refused(
    cloud: Cloud, name: str, parameters: dict[str, list[str]], code: str
) -> None:
    before = len(cloud.automation.executions)
    with pytest.raises(ClientError, match=code):
        cloud.client("ssm").start_automation_execution(DocumentName=name, Parameters=parameters)
    assert len(cloud.automation.executions) == before


def test_execution_that_nobody_started(cloud: Cloud) -> None:
    with pytest.raises(ClientError, match="AutomationExecutionNotFoundException"):
        look(cloud, "5a7b1a2e-0000-0000-0000-000000000000")


def test_describe(cloud: Cloud) -> None:
    ssm = cloud.client("ssm")
    keys = [start(cloud, Text=str(number)) for number in range(3)]
    for key in keys:
        ended(cloud, key)

    def found(**filters: str) -> list[str]:
        answer = ssm.describe_automation_executions(
            Filters=[{"Key": key, "Values": [value]} for key, value in filters.items()]
        )
        return [e["AutomationExecutionId"] for e in answer["AutomationExecutionMetadataList"]]

    assert found(DocumentNamePrefix="Ow")[:3] == keys[::-1]
    assert found(DocumentNamePrefix="SESMail") == []
    assert found(ExecutionId=keys[1], ExecutionStatus="Success") == [keys[1]]
    assert found(ExecutionId=keys[1], ExecutionStatus="Failed") == []
    pages = ssm.get_paginator("describe_automation_executions").paginate(MaxResults=2)
    listed = [
        e["AutomationExecutionId"] for p in pages for e in p["AutomationExecutionMetadataList"]
    ]
    assert listed == list(cloud.automation.executions)[::-1]
    # The key that the former runbook gives does not exist on AWS.
    with pytest.raises(ClientError, match="InvalidFilterKey"):
        found(DocumentName="Own")


def test_documents_are_listed_as_deployed(cloud: Cloud) -> None:
    listed = cloud.client("ssm").list_documents(Filters=[{"Key": "Owner", "Values": ["Self"]}])
    names = {entry["Name"] for entry in listed["DocumentIdentifiers"]}
    assert {"SESMail-DLQ-Redrive-test", "SESMail-Queue-HealthCheck-test"} <= names


def aws(cloud: Cloud, *arguments: str) -> Any:
    ran = subprocess.run(
        [Path(sys.executable).with_name("aws"), *arguments],
        env={
            **os.environ,
            "AWS_ENDPOINT_URL": cloud.aws_url,
            "AWS_DEFAULT_REGION": "ap-southeast-2",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_command_line(cloud: Cloud) -> None:
    key = aws(
        cloud, "ssm", "start-automation-execution", "--document-name", "Own",
        "--parameters", "Text=a,     Do=answer",
        "--query", "AutomationExecutionId", "--output", "text",
    ).strip()  # fmt: skip
    ended(cloud, key)
    shown = aws(
        cloud, "ssm", "get-automation-execution", "--automation-execution-id", key,
        "--query", "AutomationExecution.Outputs",
    )  # fmt: skip
    assert json.loads(shown) == {"Only.Text": ["a"], "Only.Number": ["7"]}
    assert json.loads(aws(cloud, "ses", "get-account-sending-enabled")) == {"Enabled": True}


def test_pipe_stops_and_starts(cloud: Cloud) -> None:
    sqs, name = cloud.client("sqs"), "ses-email-router-test"
    aws(cloud, "pipes", "stop-pipe", "--name", name)
    cloud.pipe.pause()  # which waits for what was on its way
    for _ in range(3):
        (pipe,) = json.loads(aws(cloud, "pipes", "list-pipes"))["Pipes"]
        assert (pipe["CurrentState"], pipe["DesiredState"]) == ("STOPPED", "STOPPED")
    sqs.send_message(QueueUrl=cloud.resource("InputQueue"), MessageBody="no notification")
    time.sleep(0.5)
    assert cloud.dead_letters("InputDlq") == []
    aws(cloud, "pipes", "start-pipe", "--name", name)
    described = json.loads(aws(cloud, "pipes", "describe-pipe", "--name", name))
    assert (described["CurrentState"], described["DesiredState"]) == ("RUNNING", "RUNNING")
    cloud.wait_idle()
    assert len(cloud.dead_letters("InputDlq")) == 1


def test_logs_of_the_functions(cloud: Cloud) -> None:
    cloud.put_rule("logged@example.com", "store")
    message_id = cloud.send(b"Subject: a\r\n\r\nb", "zoe@elsewhere.example", ["logged@example.com"])
    cloud.wait_idle()
    group = "/aws/lambda/ses-mail-router-test"
    for _ in range(2):  # each line once, however often somebody asks
        events = cloud.client("logs").filter_log_events(logGroupName=group)["events"]
        lines = [json.loads(e["message"]) for e in events if message_id in e["message"]]
        assert [line["message"] for line in lines].count("Routing decision") == 1
    # `aws logs tail` of the command line's version 2 asks for the same.
    shown = aws(cloud, "logs", "filter-log-events", "--log-group-name", group)
    assert message_id in shown


def test_other_documents_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="StringList"):
        given({"A": {"type": "StringList"}}, {})
    with pytest.raises(NotImplementedError, match="no Integer"):
        selected(
            [{"Name": "A", "Selector": "$.Payload.A", "Type": "Integer"}], {"Payload": {"A": "1"}}
        )


def test_substitution() -> None:
    values = {"A": ["1"], "B": ["{{ A }}"]}
    node = {"x": ["{{ A }}-{{B}}", 3, None], "{{ A }}": "{{ A"}
    # Names stay, and what a value holds is no variable.
    assert substituted(node, values) == {"x": ["1-{{ A }}", 3, None], "{{ A }}": "{{ A"}
