"""The deployed template, SAM's additions included, by the words of the design."""

import json
from pathlib import Path
from typing import Any

import pytest

from local.events import matches, rate
from tests.template.contract import FUNCTIONS, Project

ROOT = Path(__file__).parents[2]
HOUR = 3600


def stack(**parameters: str) -> Project:
    given = {"Environment": "test", "Domains": ["example.com", "example.org"], **parameters}
    return Project(ROOT, given)


STACK = stack()


# ── parameters and outputs ───────────────────────────────────────────────────────────────────────

DEFAULTS = {
    "Environment": None,
    "Domains": None,  # without it the rule would take the mail of every domain of the account
    "ReceiptRuleSet": "",
    "RetentionDays": "90",  # a dead letter lives 14 days and must still find its email
    "ForwarderConcurrency": 0,  # a small account has 10 in all
    "BouncesPerSenderPerHour": 10,
    "LogRetentionDays": 30,
    "AlarmEmail": "",
    "HighVolumePerHour": 1000,
    "RunbookUrl": "runbooks/OPERATIONS.md",
}


def test_defaults() -> None:
    parameters = STACK.template["Parameters"]
    assert {name: p.get("Default") for name, p in parameters.items()} == DEFAULTS


def test_limits_of_parameters() -> None:
    parameters = STACK.template["Parameters"]
    assert {n: p["MinValue"] for n, p in parameters.items() if "MinValue" in p} == {
        "ForwarderConcurrency": 0,
        "BouncesPerSenderPerHour": 1,
        "HighVolumePerHour": 1,
    }
    assert not [n for n, p in parameters.items() if "MaxValue" in p]
    assert parameters["Environment"]["AllowedValues"] == ["test", "prod"]
    assert parameters["Domains"]["Type"] == "CommaDelimitedList"
    # All that CloudWatch takes up to five years; anything else fails in the middle of a deployment.
    allowed = [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827]
    assert parameters["LogRetentionDays"]["AllowedValues"] == allowed


@pytest.mark.parametrize("env", ["test", "prod"])
def test_outputs(env: str) -> None:
    deployed = stack(Environment=env)
    queue = "https://sqs.eu-west-1.amazonaws.com/123456789012"
    assert {
        name: deployed.resolve(output["Value"])
        for name, output in deployed.template["Outputs"].items()
    } == {
        "EmailBucketName": f"ses-mail-storage-123456789012-{env}",
        "ProcessingTopicArn": f"arn:aws:sns:eu-west-1:123456789012:ses-email-processing-{env}",
        "InputQueueUrl": f"{queue}/ses-email-input-{env}",
        "InputDlqUrl": f"{queue}/ses-email-input-dlq-{env}",
        "GmailForwarderDlqUrl": f"{queue}/ses-gmail-forwarder-dlq-{env}",
        "BouncerDlqUrl": f"{queue}/ses-bouncer-dlq-{env}",
        "RoutingTableName": f"ses-email-routing-{env}",
        "DeliveriesTableName": f"ses-mail-deliveries-{env}",
        "StateMachineArn": "arn:aws:states:eu-west-1:123456789012:stateMachine:"
        f"ses-mail-process-email-{env}",
        "ReceiptRuleSetName": f"ses-mail-{env}",
    }


def test_the_rule_set_that_is_named_is_the_output() -> None:
    output = stack(ReceiptRuleSet="another").template["Outputs"]["ReceiptRuleSetName"]
    assert stack(ReceiptRuleSet="another").resolve(output["Value"]) == "another"


def test_monitoring_gets_what_it_is_about() -> None:
    given = {
        "AlarmEmail": "a@example.com",
        "HighVolumePerHour": "7",
        "RunbookUrl": "https://example.com/runbook",
    }
    monitoring = stack(**given).deployed_properties("Monitoring")
    assert monitoring == {
        "TemplateURL": "monitoring.yaml",
        "Parameters": {"Environment": "test", **given},
    }


# ── how long things are kept ─────────────────────────────────────────────────────────────────────

CLEAN_UP = {
    "Id": "abort-incomplete-uploads",
    "Status": "Enabled",
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
}


@pytest.mark.parametrize("days", ["90", "30", "0"])
def test_emails_expire_and_nothing_else_of_the_bucket(days: str) -> None:
    bucket = stack(RetentionDays=days).deployed_properties("EmailBucket")
    expiry = {
        "Id": "expire-emails",
        "Status": "Enabled",
        "Prefix": "emails/",
        "ExpirationInDays": days,
    }
    assert bucket["LifecycleConfiguration"] == {
        "Rules": [CLEAN_UP, *([expiry] if days != "0" else [])]
    }
    # Old versions would stay for ever.
    assert "VersioningConfiguration" not in bucket


LOGS = {
    **{
        name.replace("Function", "LogGroup"): f"/aws/lambda/ses-mail-{kind.replace('_', '-')}-test"
        for name, kind in FUNCTIONS.items()
    },
    "PipeLogGroup": "/aws/vendedlogs/pipes/test/ses-email-router",
    "ProcessEmailLogGroup": "/aws/vendedlogs/states/ses-mail-process-email-test",
}


def test_every_log_group_is_kept_as_long_as_it_says() -> None:
    deployed = stack(LogRetentionDays="7")
    groups = [n for n, r in deployed.deployed.items() if r["Type"] == "AWS::Logs::LogGroup"]
    assert {name: deployed.deployed_properties(name) for name in groups} == {
        name: {"LogGroupName": group, "RetentionInDays": "7"} for name, group in LOGS.items()
    }


def test_pipe_and_state_machine_log_into_their_own_groups() -> None:
    pipe = STACK.deployed_properties("Pipe")["LogConfiguration"]
    assert pipe == {
        "Level": "ERROR",  # and no IncludeExecutionData: addresses and subjects stay out
        "CloudwatchLogsLogDestination": {"LogGroupArn": STACK.arn("PipeLogGroup")},
    }
    machine = STACK.deployed_properties("ProcessEmailStateMachine")["LoggingConfiguration"]
    assert machine == {
        "Level": "ERROR",
        "IncludeExecutionData": False,
        "Destinations": [
            {"CloudWatchLogsLogGroup": {"LogGroupArn": STACK.arn("ProcessEmailLogGroup")}}
        ],
    }


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_function_logs_into_its_own_group_and_is_traced(function: str) -> None:
    deployed = STACK.deployed_properties(function)
    group = LOGS[function.replace("Function", "LogGroup")]
    assert deployed["LoggingConfig"] == {"LogGroup": group}
    assert deployed["TracingConfig"] == {"Mode": "Active"}


def test_the_state_machine_is_standard_and_traced() -> None:
    machine = STACK.deployed_properties("ProcessEmailStateMachine")
    assert machine["StateMachineType"] == "STANDARD"
    assert machine["TracingConfiguration"] == {"Enabled": True}
    assert machine["RoleArn"] == STACK.arn("ProcessEmailRole")


# ── functions ────────────────────────────────────────────────────────────────────────────────────

QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012"
TOKENS = {
    "TOKEN_PARAMETER": "/ses-mail/test/gmail-token",
    "MAILBOX_TOKEN_PREFIX": "/ses-mail/test/gmail-tokens/",
}
MACHINE_ARN = "arn:aws:states:eu-west-1:123456789012:stateMachine:ses-mail-process-email-test"
IN_BASE = "ses-mail-base-test"
IN_GMAIL = "ses-mail-gmail-test"
# Seconds, MB, layers, variables beside those of Powertools.
FUNCTION_TABLE: dict[str, tuple[int, int, list[str], dict[str, str]]] = {
    "StarterFunction": (
        30,
        512,
        [IN_BASE],
        {"STATE_MACHINE_ARN": MACHINE_ARN, "INPUT_DLQ_URL": f"{QUEUE}/ses-email-input-dlq-test"},
    ),
    "FetcherFunction": (60, 512, [IN_BASE], {"BUCKET": "ses-mail-storage-123456789012-test"}),
    "RouterFunction": (30, 512, [IN_BASE], {"ROUTING_TABLE": "ses-email-routing-test"}),
    "GmailForwarderFunction": (
        300,
        1024,
        [IN_BASE, IN_GMAIL],
        {"DELIVERIES_TABLE": "ses-mail-deliveries-test", "RETENTION_DAYS": "45", **TOKENS},
    ),
    "BouncerFunction": (
        60,
        512,
        [IN_BASE],
        {
            "DELIVERIES_TABLE": "ses-mail-deliveries-test",
            "DOMAINS": "example.com,example.org",
            "RETENTION_DAYS": "45",
            "BOUNCES_PER_SENDER_PER_HOUR": "7",
        },
    ),
    "SweeperFunction": (
        300,  # up to 3 h of executions, each of which may have to be described
        512,
        [IN_BASE],
        {
            "STATE_MACHINE_ARN": MACHINE_ARN,
            "DELIVERIES_TABLE": "ses-mail-deliveries-test",
            "INPUT_DLQ_URL": f"{QUEUE}/ses-email-input-dlq-test",
        },
    ),
    "TokenMonitorFunction": (
        300,
        512,
        [IN_BASE, IN_GMAIL],
        {
            "DELIVERIES_TABLE": "ses-mail-deliveries-test",
            "GMAIL_FORWARDER_DLQ_URL": f"{QUEUE}/ses-gmail-forwarder-dlq-test",
            "INPUT_QUEUE_URL": f"{QUEUE}/ses-email-input-test",
            "REDRIVE_DOCUMENT": "SESMail-DLQ-Redrive-test",
            **TOKENS,
        },
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    deployed = stack(RetentionDays="45", BouncesPerSenderPerHour="7").deployed_properties(name)
    timeout, memory, layers, variables = FUNCTION_TABLE[name]
    word = FUNCTIONS[name].replace("_", "-")
    assert (deployed["Timeout"], deployed["MemorySize"]) == (timeout, memory)
    assert deployed["Layers"] == layers
    assert deployed["Environment"]["Variables"] == {
        **variables,
        "POWERTOOLS_METRICS_NAMESPACE": "SESMail/test",
        "POWERTOOLS_LOG_LEVEL": "INFO",
        "POWERTOOLS_SERVICE_NAME": word,
    }
    assert deployed["FunctionName"] == f"ses-mail-{word}-test"
    assert (deployed["Runtime"], deployed["Architectures"]) == ("python3.13", ["x86_64"])
    assert "ReservedConcurrentExecutions" not in deployed


def test_the_lever_is_the_forwarder_s_alone() -> None:
    deployed = stack(ForwarderConcurrency="3")
    reserved = {
        name: deployed.deployed_properties(name).get("ReservedConcurrentExecutions")
        for name in FUNCTIONS
    }
    assert {name: value for name, value in reserved.items() if value is not None} == {
        "GmailForwarderFunction": "3"
    }


# ── events ───────────────────────────────────────────────────────────────────────────────────────

RULES = {
    "SweeperFunctionExecutionDied": "SweeperFunction",
    "SweeperFunctionHourly": "SweeperFunction",
    "TokenMonitorFunctionTokenChanged": "TokenMonitorFunction",
    "TokenMonitorFunctionHourly": "TokenMonitorFunction",
}


def test_every_rule_calls_its_function_and_none_is_disabled() -> None:
    found = {n for n, r in STACK.deployed.items() if r["Type"] == "AWS::Events::Rule"}
    assert found == set(RULES)
    for name, function in RULES.items():
        rule = STACK.deployed_properties(name)
        assert [target["Arn"] for target in rule["Targets"]] == [STACK.arn(function)]
        # The target gets the event as it is: an Input would hide it.
        assert [set(target) for target in rule["Targets"]] == [{"Arn", "Id"}]
        assert rule.get("State", "ENABLED") == "ENABLED"
        assert rule.get("EventBusName", "default") == "default"
        assert ("EventPattern" in rule) != ("ScheduleExpression" in rule)


@pytest.mark.parametrize(
    ("name", "seconds", "why"),
    [
        ("SweeperFunctionHourly", HOUR, "hourly over what stopped in the last 3 h"),
        ("TokenMonitorFunctionHourly", HOUR, "its metric alarms when it is missing for hours"),
    ],
)
def test_schedules(name: str, seconds: int, why: str) -> None:
    assert rate(STACK.deployed_properties(name)["ScheduleExpression"]) == seconds, why


def changed(event: dict[str, Any], **fields: Any) -> dict[str, Any]:
    detail = {k: v for k, v in fields.items() if k in event["detail"]}
    outer = {k.replace("_", "-"): v for k, v in fields.items() if k not in event["detail"]}
    return {**event, **outer, "detail": {**event["detail"], **detail}}


DIED = json.loads((ROOT / "events/sweeper.json").read_text())
PUT = json.loads((ROOT / "events/token_monitor.json").read_text())
TOKEN = "/ses-mail/test/gmail-token"


@pytest.mark.parametrize(
    ("rule", "fields", "admitted"),
    [
        *(
            ("SweeperFunctionExecutionDied", {"status": status}, admitted)
            for status, admitted in (
                ("FAILED", True),
                ("TIMED_OUT", True),
                ("ABORTED", True),
                ("SUCCEEDED", False),
                ("RUNNING", False),
                ("PENDING_REDRIVE", False),
            )
        ),
        ("SweeperFunctionExecutionDied", {"stateMachineArn": f"{MACHINE_ARN}-2"}, False),
        (
            "SweeperFunctionExecutionDied",
            {"stateMachineArn": MACHINE_ARN.replace("-test", "-prod")},
            False,
        ),
        ("SweeperFunctionExecutionDied", {"source": "com.example"}, False),
        ("SweeperFunctionExecutionDied", {"detail_type": "Something else"}, False),
        ("TokenMonitorFunctionTokenChanged", {"name": TOKEN, "operation": "Update"}, True),
        ("TokenMonitorFunctionTokenChanged", {"name": TOKEN, "operation": "Create"}, True),
        ("TokenMonitorFunctionTokenChanged", {"name": TOKEN, "operation": "Delete"}, False),
        ("TokenMonitorFunctionTokenChanged", {"name": f"{TOKEN}s/anna_40example.com"}, True),
        ("TokenMonitorFunctionTokenChanged", {"name": f"{TOKEN}-old"}, False),
        ("TokenMonitorFunctionTokenChanged", {"name": f"{TOKEN}s"}, False),
        ("TokenMonitorFunctionTokenChanged", {"name": "/ses-mail/prod/gmail-token"}, False),
        ("TokenMonitorFunctionTokenChanged", {"name": "/ses-mail/prod/gmail-tokens/a"}, False),
        ("TokenMonitorFunctionTokenChanged", {"source": "com.example"}, False),
        ("TokenMonitorFunctionTokenChanged", {"detail_type": "Parameter Store Policy"}, False),
    ],
)
def test_which_events_a_rule_admits(rule: str, fields: dict[str, Any], admitted: bool) -> None:
    sample = DIED if rule.startswith("Sweeper") else PUT
    sample = changed(sample, stateMachineArn=MACHINE_ARN) if sample is DIED else sample
    pattern = STACK.deployed_properties(rule)["EventPattern"]
    assert matches(pattern, changed(sample, **fields)) is admitted
