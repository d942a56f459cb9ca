"""What template.yaml promises by itself: names, retention, policies, and clean linting."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.template.contract import ACCOUNT, DOCUMENTS, FUNCTIONS, REGION, Grant, Project, as_list

ROOT = Path(__file__).parents[2]
RETAINED = ["EmailBucket", "RoutingTable", "DeliveriesTable", "InboundRuleSet"]
RULE_ARN = f"arn:aws:ses:{REGION}:{ACCOUNT}:receipt-rule-set/{{}}:receipt-rule/ses-mail-{{}}"
# X-Ray, log deliveries and metrics are no resources: AWS wants the wildcard.
WILDCARD_RESOURCES = {name.replace("Function", "Role") for name in FUNCTIONS} | {
    "ProcessEmailRole",
    "QueueHealthCheckRole",
}

NAMES = {
    "InboundRuleSet": "ses-mail-{env}",
    "EmailBucket": "ses-mail-storage-123456789012-{env}",
    "ProcessingTopic": "ses-email-processing-{env}",
    "InputQueue": "ses-email-input-{env}",
    "InputDlq": "ses-email-input-dlq-{env}",
    "GmailForwarderDlq": "ses-gmail-forwarder-dlq-{env}",
    "BouncerDlq": "ses-bouncer-dlq-{env}",
    "Pipe": "ses-email-router-{env}",
    "PipeLogGroup": "/aws/vendedlogs/pipes/{env}/ses-email-router",
    "ProcessEmailStateMachine": "ses-mail-process-email-{env}",
    "ProcessEmailLogGroup": "/aws/vendedlogs/states/ses-mail-process-email-{env}",
    "RoutingTable": "ses-email-routing-{env}",
    "DeliveriesTable": "ses-mail-deliveries-{env}",
    "StarterFunction": "ses-mail-starter-{env}",
    "FetcherFunction": "ses-mail-fetcher-{env}",
    "RouterFunction": "ses-mail-router-{env}",
    "GmailForwarderFunction": "ses-mail-gmail-forwarder-{env}",
    "BouncerFunction": "ses-mail-bouncer-{env}",
    "SweeperFunction": "ses-mail-sweeper-{env}",
    "TokenMonitorFunction": "ses-mail-token-monitor-{env}",
    "StarterLogGroup": "/aws/lambda/ses-mail-starter-{env}",
    "FetcherLogGroup": "/aws/lambda/ses-mail-fetcher-{env}",
    "RouterLogGroup": "/aws/lambda/ses-mail-router-{env}",
    "GmailForwarderLogGroup": "/aws/lambda/ses-mail-gmail-forwarder-{env}",
    "BouncerLogGroup": "/aws/lambda/ses-mail-bouncer-{env}",
    "SweeperLogGroup": "/aws/lambda/ses-mail-sweeper-{env}",
    "TokenMonitorLogGroup": "/aws/lambda/ses-mail-token-monitor-{env}",
    "DlqRedriveDocument": "SESMail-DLQ-Redrive-{env}",
    "QueueHealthCheckDocument": "SESMail-Queue-HealthCheck-{env}",
    "BaseLayer": "ses-mail-base-{env}",
    "GmailLayer": "ses-mail-gmail-{env}",
}


def stack(env: str = "test", **parameters: Any) -> Project:
    given = {"Environment": env, "Domains": ["example.com", "example.org"], **parameters}
    return Project(ROOT, given)


@pytest.fixture(scope="module", params=["test", "prod"])
def env(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "command",
    [
        [
            *("-c", "import sys; from cfnlint.runner import main; sys.exit(main())"),
            *("template.yaml", "monitoring.yaml"),
        ],
        ["-m", "samcli", "validate", "--lint"],
    ],
    ids=["cfn-lint", "sam validate"],
)
def test_linters_are_silent(command: list[str]) -> None:
    quiet = {"SAM_CLI_TELEMETRY": "0", "AWS_EC2_METADATA_DISABLED": "true"}
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | quiet | {"AWS_DEFAULT_REGION": REGION},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.strip() in ("", f"{ROOT}/template.yaml is a valid SAM Template")


def test_no_lint_rule_is_ignored_for_the_whole_template() -> None:
    assert "cfn-lint" not in stack().template.get("Metadata", {})
    assert not list(ROOT.glob(".cfnlintrc*"))


def test_names(env: str) -> None:
    project = stack(env)
    named = {
        logical_id
        for logical_id, resource in project.resources.items()
        if project.name(logical_id) != logical_id and "Role" not in resource["Type"]
    }
    assert {name: project.name(name) for name in named} == {
        name: expected.format(env=env) for name, expected in NAMES.items()
    }
    assert project.properties("ReceiptRule")["Rule"]["Name"] == f"ses-mail-{env}"


def test_roles_have_no_names(env: str) -> None:
    # A named role needs CAPABILITY_NAMED_IAM, and its replacement fails on its own name.
    project = stack(env)
    roles = [n for n, r in project.resources.items() if r["Type"] == "AWS::IAM::Role"]
    assert all("RoleName" not in project.properties(role) for role in roles)
    assert all("ManagedPolicyArns" not in project.properties(role) for role in roles)


@pytest.mark.parametrize("name", RETAINED)
def test_mail_and_rules_survive_the_stack(name: str) -> None:
    resource = stack().resources[name]
    assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
    assert resource["UpdateReplacePolicy"] == "Retain"


@pytest.mark.parametrize("name", ["RoutingTable", "DeliveriesTable"])
def test_tables(name: str, env: str) -> None:
    table = stack(env).properties(name)
    assert [(k["AttributeName"], k["KeyType"]) for k in table["KeySchema"]] == [
        ("PK", "HASH"),
        ("SK", "RANGE"),
    ]
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"] is (env == "prod")
    assert table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] is True
    expires = {"AttributeName": "expires_at", "Enabled": True}
    assert table.get("TimeToLiveSpecification") == (expires if name == "DeliveriesTable" else None)


@pytest.mark.parametrize(
    ("parameter", "accepted", "refused"),
    [
        ("RetentionDays", ["0", "30", "90", "3650"], ["1", "14", "29", "-1", "030", "", "90.5"]),
        (
            "Domains",
            ["example.com", "a.b-c.example", "xn--bcher-kva.example"],
            [
                "",
                "example",
                "Example.com",
                " example.com",
                "*.example.com",
                "user@example.com",
                ".",
            ],
        ),
    ],
)
def test_parameter_patterns(parameter: str, accepted: list[str], refused: list[str]) -> None:
    pattern = stack().template["Parameters"][parameter]["AllowedPattern"]
    assert [text for text in accepted if not re.fullmatch(pattern, text)] == []
    assert [text for text in refused if re.fullmatch(pattern, text)] == []


def test_every_parameter_is_described_and_only_domains_has_no_default() -> None:
    parameters = stack().template["Parameters"]
    assert all(parameter["Description"] for parameter in parameters.values())
    assert {n for n, p in parameters.items() if "Default" not in p} == {"Environment", "Domains"}


@pytest.mark.parametrize(
    ("name", "seconds", "days"),
    [
        ("InputQueue", 180, 10),
        ("InputDlq", None, 14),
        ("GmailForwarderDlq", None, 14),
        ("BouncerDlq", None, 14),
    ],
)
def test_queues(name: str, seconds: int | None, days: int) -> None:
    queue = stack().properties(name)
    assert queue["SqsManagedSseEnabled"] is True
    assert queue.get("VisibilityTimeout") == seconds
    assert queue["MessageRetentionPeriod"] == days * 24 * 3600


def test_redrive_policies() -> None:
    project = stack()
    dlq = {"deadLetterTargetArn": project.arn("InputDlq")}
    assert project.properties("InputQueue")["RedrivePolicy"] == {**dlq, "maxReceiveCount": 100}
    assert project.properties("ProcessingSubscription")["RedrivePolicy"] == dlq
    assert project.properties("InputDlq")["RedriveAllowPolicy"] == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [project.arn("InputQueue")],
    }
    starter = project.properties("StarterFunction")
    assert project.properties("InputQueue")["VisibilityTimeout"] == 6 * starter["Timeout"]


@pytest.mark.parametrize(
    ("parameter", "created", "rule_set"),
    [("", True, "ses-mail-test"), ("somebody-elses", False, "somebody-elses")],
)
def test_receipt_rule(parameter: str, created: bool, rule_set: str) -> None:
    project = stack(ReceiptRuleSet=parameter)
    assert project.resources["InboundRuleSet"]["Condition"] == "CreateRuleSet"
    assert project.resolve(project.template["Conditions"]["CreateRuleSet"]) is created
    rule = project.properties("ReceiptRule")
    assert rule == {
        "RuleSetName": rule_set,
        "Rule": {
            "Name": "ses-mail-test",
            "Enabled": True,
            "ScanEnabled": True,
            "TlsPolicy": "Optional",
            "Recipients": ["example.com", "example.org"],
            "Actions": [
                {
                    "S3Action": {
                        "BucketName": project.name("EmailBucket"),
                        "ObjectKeyPrefix": "emails/",
                        "TopicArn": project.arn("ProcessingTopic"),
                    }
                }
            ],
        },
    }


def test_bucket_is_private() -> None:
    bucket = stack().properties("EmailBucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    # SES and CloudWatch cannot publish under alias/aws/sns.
    assert "KmsMasterKeyId" not in stack().properties("ProcessingTopic")


def test_pipe() -> None:
    project = stack()
    pipe = project.properties("Pipe")
    assert "DesiredState" not in pipe, "a deployment would restart a paused pipe"
    assert (pipe["Source"], pipe["Target"]) == (
        project.arn("InputQueue"),
        project.arn("StarterFunction"),
    )
    assert pipe["SourceParameters"]["SqsQueueParameters"] == {"BatchSize": 10}
    assert pipe["TargetParameters"]["LambdaFunctionParameters"] == {
        "InvocationType": "REQUEST_RESPONSE"
    }
    assert pipe["LogConfiguration"]["Level"] == "ERROR"
    assert "IncludeExecutionData" not in pipe["LogConfiguration"]
    assert project.grants("PipeRole") == {
        *(
            Grant(f"sqs:{action}", project.arn("InputQueue"))
            for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes")
        ),
        Grant("lambda:InvokeFunction", project.arn("StarterFunction")),
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_scripts_of_documents_pass_the_linter(document: str) -> None:
    (step,) = stack().properties(document)["Content"]["mainSteps"]
    for command in (["check", "--ignore=T201"], ["format", "--check", "--line-length=92"]):
        # 92 and 8 of indentation; and printing is a script's way to log.
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "-"],
            cwd=ROOT,
            input=step["inputs"]["Script"] + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_role_has_wildcards_that_aws_does_not_force(env: str) -> None:
    project = stack(env)
    for name, resource in project.resources.items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        grants = project.all_grants(name)
        assert not [grant for grant in grants if "*" in grant.action]
        forced = {grant for grant in grants if grant.resource == "*"}
        services = ("xray:", "logs:", "cloudwatch:", "ses:DescribeActiveReceiptRuleSet")
        assert all(grant.action.startswith(services) for grant in forced)
        assert bool(forced) is (name in WILDCARD_RESOURCES)


def test_each_wildcard_resource_says_why() -> None:
    lines = (ROOT / "template.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.strip() == 'Resource: "*"':
            start = max(n for n in range(number) if lines[n].strip().startswith("- Effect:"))
            assert "# " in lines[start], f"line {number + 1}"


def test_both_environments_share_nothing_in_one_account() -> None:
    test, prod = (
        {project.name(name) for name in NAMES} for project in (stack("test"), stack("prod"))
    )
    assert not test & prod


def statements(project: Project, policy: str) -> list[dict[str, Any]]:
    return as_list(project.properties(policy)["PolicyDocument"]["Statement"])
