"""Who may do what: each policy of the template against requests that it must allow and others that
it must refuse, and proof that no statement could be removed, denied or widened unseen."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from local.access import permission
from local.policy import Request, decide
from local.stack import translated
from tests.template.contract import ACCOUNT, REGION, Project, as_list

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
MONITORING = Project(ROOT, file="monitoring.yaml")
STRANGER = "210987654321"  # another account

SES, SNS, EVENTS, PIPES, STATES, LAMBDA, SSM, CLOUDWATCH = (
    ("Service", f"{name}.amazonaws.com")
    for name in ("ses", "sns", "events", "pipes", "states", "lambda", "ssm", "cloudwatch")
)
SOMEBODY = ("AWS", f"arn:aws:iam::{ACCOUNT}:role/somebody")
OUTSIDER = ("AWS", f"arn:aws:iam::{STRANGER}:role/outsider")

BUCKET = f"arn:aws:s3:::ses-mail-storage-{ACCOUNT}-test"
EMAIL = f"{BUCKET}/emails/0123456789"
ALARM = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:ses-mail-unrouted-test"


def arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def function(name: str) -> str:
    return arn("lambda", f"function:ses-mail-{name}-test")


def rule(rule_set: str = "ses-mail-test", name: str = "ses-mail-test") -> str:
    return arn("ses", f"receipt-rule-set/{rule_set}:receipt-rule/{name}")


TOPIC = arn("sns", "ses-email-processing-test")
ALARMS = arn("sns", "ses-mail-alarms-test")
INPUT, INPUT_DLQ, FORWARDER_DLQ, BOUNCER_DLQ = (
    arn("sqs", f"ses-{name}-test")
    for name in ("email-input", "email-input-dlq", "gmail-forwarder-dlq", "bouncer-dlq")
)
ROUTING, DELIVERIES = (
    arn("dynamodb", f"table/{name}-test") for name in ("ses-email-routing", "ses-mail-deliveries")
)
MACHINE = arn("states", "stateMachine:ses-mail-process-email-test")
EXECUTION = arn("states", "execution:ses-mail-process-email-test:0123456789")
PIPE = arn("pipes", "pipe/ses-email-router-test")
TOKEN = arn("ssm", "parameter/ses-mail/test/gmail-token")
TOKENS = arn("ssm", "parameter/ses-mail/test/gmail-tokens")
REDRIVE = "SESMail-DLQ-Redrive-test"
AUTOMATION = arn("ssm", "automation-execution/00000000-0000-0000-0000-000000000000")


class Case(NamedTuple):
    """A request and what becomes of it: Allow, Deny, or None (nobody allows it)."""

    policy: str
    decision: str | None
    principal: tuple[str, str]
    action: str
    resource: str
    context: dict[str, str]


def source(
    resource: str | None, account: str | None = ACCOUNT, secure: bool = True
) -> dict[str, str]:
    """The context that a service sends along when it acts for a resource."""
    given = {"aws:SourceArn": resource, "aws:SourceAccount": account}
    tls = {"aws:SecureTransport": str(secure).lower()}
    return tls | {key: value for key, value in given.items() if value}


def elsewhere(resource: str) -> str:
    return resource.replace(ACCOUNT, STRANGER)


# ── policies of resources ────────────────────────────────────────────────────────────────────────

BUCKET_CASES = [
    ("Allow", SES, "s3:PutObject", EMAIL, source(rule())),
    (None, SES, "s3:PutObject", EMAIL, source(rule(), STRANGER)),
    (None, SES, "s3:PutObject", EMAIL, source(elsewhere(rule()), STRANGER)),
    (None, SES, "s3:PutObject", EMAIL, source(elsewhere(rule()))),
    (None, SES, "s3:PutObject", EMAIL, source(rule(name="another"))),
    (None, SES, "s3:PutObject", EMAIL, source(rule("another"))),
    (None, SES, "s3:PutObject", EMAIL, source(rule().replace(REGION, "us-east-1"))),
    (None, SES, "s3:PutObject", EMAIL, source(None)),
    (None, SES, "s3:PutObject", EMAIL, source(rule(), None)),
    (None, SES, "s3:PutObject", f"{BUCKET}/other", source(rule())),
    (None, SES, "s3:PutObject", f"{BUCKET}/emails-2/1", source(rule())),
    (None, SES, "s3:PutObject", f"{BUCKET}-2/emails/1", source(rule())),
    (None, SES, "s3:GetObject", EMAIL, source(rule())),
    (None, SES, "s3:PutObjectAcl", EMAIL, source(rule())),
    (None, SES, "s3:DeleteObject", EMAIL, source(rule())),
    (None, SNS, "s3:PutObject", EMAIL, source(rule())),
    (None, OUTSIDER, "s3:PutObject", EMAIL, source(rule())),
    (None, OUTSIDER, "s3:GetObject", EMAIL, source(None, None)),
    ("Deny", SES, "s3:PutObject", EMAIL, source(rule(), secure=False)),
    ("Deny", SOMEBODY, "s3:GetObject", EMAIL, source(None, None, secure=False)),
    ("Deny", OUTSIDER, "s3:GetObject", EMAIL, source(None, None, secure=False)),
    ("Deny", SOMEBODY, "s3:ListBucket", BUCKET, source(None, None, secure=False)),
    ("Deny", SOMEBODY, "s3:DeleteObject", EMAIL, source(None, None, secure=False)),
    ("Deny", SOMEBODY, "s3:PutObject", f"{BUCKET}/other", source(None, None, secure=False)),
    (None, SOMEBODY, "s3:GetObject", EMAIL, source(None, None)),  # the role's own policy allows
    (None, SOMEBODY, "s3:ListBucket", BUCKET, source(None, None)),
    (None, SOMEBODY, "s3:ListBucket", f"{BUCKET}-2", source(None, None, secure=False)),
    (None, SOMEBODY, "sqs:SendMessage", BUCKET, source(None, None, secure=False)),
]
TOPIC_CASES = [
    ("Allow", SES, "sns:Publish", TOPIC, source(rule())),
    (None, SES, "sns:Publish", TOPIC, source(rule(), STRANGER)),
    (None, SES, "sns:Publish", TOPIC, source(elsewhere(rule()), STRANGER)),
    (None, SES, "sns:Publish", TOPIC, source(elsewhere(rule()))),
    (None, SES, "sns:Publish", TOPIC, source(rule(name="another"))),
    (None, SES, "sns:Publish", TOPIC, source(rule("another"))),
    (None, SES, "sns:Publish", TOPIC, source(None)),
    (None, SES, "sns:Publish", TOPIC, source(rule(), None)),
    (None, SES, "sns:Subscribe", TOPIC, source(rule())),
    (None, SES, "sns:Publish", f"{TOPIC}-2", source(rule())),
    (None, SES, "sns:Publish", elsewhere(TOPIC), source(rule())),
    (None, EVENTS, "sns:Publish", TOPIC, source(rule())),
    (None, OUTSIDER, "sns:Publish", TOPIC, source(rule())),
]


def queue_cases(queue: str) -> list[Any]:
    return [
        ("Allow", SNS, "sqs:SendMessage", queue, source(TOPIC)),
        ("Allow", SNS, "sqs:SendMessage", queue, source(TOPIC, None)),  # AWS names no account
        (None, SNS, "sqs:SendMessage", queue, source(f"{TOPIC}-2")),
        (None, SNS, "sqs:SendMessage", queue, source(TOPIC.replace("test", "prod"))),
        (None, SNS, "sqs:SendMessage", queue, source(elsewhere(TOPIC), STRANGER)),
        (None, SNS, "sqs:SendMessage", queue, source(TOPIC.replace(REGION, "us-east-1"))),
        (None, SNS, "sqs:SendMessage", queue, source(None)),
        (None, SNS, "sqs:ReceiveMessage", queue, source(TOPIC)),
        (None, SNS, "sqs:DeleteMessage", queue, source(TOPIC)),
        (None, SNS, "sqs:SendMessage", f"{queue}-2", source(TOPIC)),
        (None, SNS, "sqs:SendMessage", elsewhere(queue), source(TOPIC)),
        (None, EVENTS, "sqs:SendMessage", queue, source(TOPIC)),
        (None, OUTSIDER, "sqs:SendMessage", queue, source(TOPIC)),
    ]


ALARM_CASES = [
    ("Allow", CLOUDWATCH, "sns:Publish", ALARMS, source(ALARM)),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(elsewhere(ALARM), STRANGER)),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(elsewhere(ALARM))),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(ALARM, STRANGER)),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(ALARM.replace(REGION, "us-east-1"))),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(ALARM.replace(":alarm:", ":dashboard:"))),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(rule())),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(None)),
    (None, CLOUDWATCH, "sns:Publish", ALARMS, source(ALARM, None)),
    (None, CLOUDWATCH, "sns:Subscribe", ALARMS, source(ALARM)),
    (None, CLOUDWATCH, "sns:Publish", TOPIC, source(ALARM)),
    (None, CLOUDWATCH, "sns:Publish", f"{ALARMS}-2", source(ALARM)),
    (None, SES, "sns:Publish", ALARMS, source(ALARM)),
    (None, OUTSIDER, "sns:Publish", ALARMS, source(ALARM)),
]


def permission_cases(name: str, event: str) -> list[Any]:
    ours = arn("events", f"rule/{event}")
    invoke = "lambda:InvokeFunction"
    return [
        ("Allow", EVENTS, invoke, function(name), source(ours)),
        ("Allow", EVENTS, invoke, function(name), source(ours, None)),
        (None, EVENTS, invoke, function(name), source(f"{ours}2")),
        (None, EVENTS, invoke, function(name), source(elsewhere(ours), STRANGER)),
        (None, EVENTS, invoke, function(name), source(None)),
        (None, EVENTS, "lambda:DeleteFunction", function(name), source(ours)),
        (None, EVENTS, invoke, function("router"), source(ours)),
        (None, EVENTS, invoke, f"{function(name)}-2", source(ours)),
        (None, SNS, invoke, function(name), source(ours)),
        (None, OUTSIDER, invoke, function(name), source(ours)),
    ]


PERMISSIONS = {
    f"{owner}Function{event}Permission": permission_cases(name, f"{owner}Function{event}")
    for owner, name, event in (
        ("Sweeper", "sweeper", "ExecutionDied"),
        ("Sweeper", "sweeper", "Hourly"),
        ("TokenMonitor", "token-monitor", "TokenChanged"),
        ("TokenMonitor", "token-monitor", "Hourly"),
    )
}
OF_RESOURCES = {
    "EmailBucketPolicy": BUCKET_CASES,
    "ProcessingTopicPolicy": TOPIC_CASES,
    "InputQueuePolicy": queue_cases(INPUT),
    "InputDlqPolicy": queue_cases(INPUT_DLQ),
    "AlarmTopicPolicy": ALARM_CASES,
    **PERMISSIONS,
}

# ── who may assume a role ────────────────────────────────────────────────────────────────────────

ASSUME = "sts:AssumeRole"


def trust_cases(service: tuple[str, str], role: str, ours: str, *foreign: str | None) -> list[Any]:
    resource = PROJECT.arn(role)
    return [
        ("Allow", service, ASSUME, resource, source(ours)),
        (None, service, ASSUME, resource, source(elsewhere(ours), STRANGER)),
        (None, service, ASSUME, resource, source(ours, STRANGER)),
        (None, service, ASSUME, resource, source(ours, None)),
        *((None, service, ASSUME, resource, source(other)) for other in foreign),
        (None, service, "sts:TagSession", resource, source(ours)),
        (None, EVENTS, ASSUME, resource, source(ours)),
        (None, SOMEBODY, ASSUME, resource, source(ours)),
        (None, OUTSIDER, ASSUME, resource, source(ours)),
    ]


def lambda_trust(role: str) -> list[Any]:
    resource = PROJECT.arn(role)
    return [
        ("Allow", LAMBDA, ASSUME, resource, {}),  # Lambda names no source
        (None, LAMBDA, "sts:TagSession", resource, {}),
        (None, EVENTS, ASSUME, resource, {}),
        (None, SOMEBODY, ASSUME, resource, {}),
        (None, OUTSIDER, ASSUME, resource, {}),
    ]


OF_FUNCTIONS = ["Starter", "Fetcher", "Router", "GmailForwarder", "Bouncer", "Sweeper"]
OF_FUNCTIONS = [f"{name}Role" for name in (*OF_FUNCTIONS, "TokenMonitor")]
OF_DOCUMENTS = ["DlqRedriveRole", "QueueHealthCheckRole"]
TRUST = {
    **{role: lambda_trust(role) for role in OF_FUNCTIONS},
    **{role: trust_cases(SSM, role, AUTOMATION, MACHINE, None) for role in OF_DOCUMENTS},
    "PipeRole": trust_cases(
        PIPES, "PipeRole", PIPE, f"{PIPE}-2", PIPE.replace("test", "prod"), None
    ),
    "ProcessEmailRole": trust_cases(STATES, "ProcessEmailRole", MACHINE),
}

# ── what a role may do ───────────────────────────────────────────────────────────────────────────

LOG_DELIVERY = [
    *(f"logs:{verb}LogDelivery" for verb in ("Create", "Get", "Update", "Delete")),
    *("logs:ListLogDeliveries", "logs:PutResourcePolicy", "logs:DescribeResourcePolicies"),
    "logs:DescribeLogGroups",
]
TRACES = ["xray:PutTraceSegments", "xray:PutTelemetryRecords"]


def observing(group: str) -> list[tuple[str, str]]:
    stream = arn("logs", f"log-group:{group}:log-stream:2026/11/25/[$LATEST]0")
    return [
        *((f"logs:{action}", stream) for action in ("CreateLogStream", "PutLogEvents")),
        *((action, "*") for action in TRACES),
    ]


def on(resource: str, *actions: str) -> list[tuple[str, str]]:
    service = resource.split(":")[2]
    return [(f"{service}:{action}", resource) for action in actions]


ALLOWED = {
    "StarterRole": [
        *on(MACHINE, "StartExecution"),
        *on(EXECUTION, "DescribeExecution"),
        *on(INPUT_DLQ, "SendMessage"),
        *observing("/aws/lambda/ses-mail-starter-test"),
    ],
    "FetcherRole": [
        *on(EMAIL, "GetObject"),
        *on(BUCKET, "ListBucket"),
        *observing("/aws/lambda/ses-mail-fetcher-test"),
    ],
    "RouterRole": [
        *on(ROUTING, "BatchGetItem"),
        *observing("/aws/lambda/ses-mail-router-test"),
    ],
    "GmailForwarderRole": [
        *on(EMAIL, "GetObject"),
        *on(BUCKET, "ListBucket"),
        *on(DELIVERIES, "GetItem", "UpdateItem"),
        *on(TOKEN, "GetParameter"),
        *on(f"{TOKENS}/anna_40example.com", "GetParameter"),
        *observing("/aws/lambda/ses-mail-gmail-forwarder-test"),
    ],
    "BouncerRole": [
        *on(EMAIL, "GetObject"),
        *on(BUCKET, "ListBucket"),
        *on(DELIVERIES, "BatchGetItem", "UpdateItem"),
        *on(arn("ses", "identity/example.com"), "SendBounce"),
        *on(arn("ses", "identity/example.org"), "SendBounce"),
        *observing("/aws/lambda/ses-mail-bouncer-test"),
    ],
    "SweeperRole": [
        *on(MACHINE, "ListExecutions"),
        *on(EXECUTION, "DescribeExecution"),
        *on(DELIVERIES, "BatchGetItem", "PutItem"),
        *on(INPUT_DLQ, "SendMessage"),
        *observing("/aws/lambda/ses-mail-sweeper-test"),
    ],
    "TokenMonitorRole": [
        *on(TOKEN, "GetParameter"),
        *on(f"{TOKENS}/anna_40example.com", "GetParameter"),
        *on(TOKENS, "GetParametersByPath"),
        *on(DELIVERIES, "BatchGetItem", "PutItem"),
        *on(FORWARDER_DLQ, "GetQueueAttributes"),
        # AWS's pages disagree on which of the three it asks for.
        *on(arn("ssm", f"automation-definition/{REDRIVE}:$DEFAULT"), "StartAutomationExecution"),
        *on(arn("ssm", f"document/{REDRIVE}"), "StartAutomationExecution"),
        *on(AUTOMATION, "StartAutomationExecution"),
        *on(PROJECT.arn("DlqRedriveRole"), "PassRole"),
        *observing("/aws/lambda/ses-mail-token-monitor-test"),
    ],
    "ProcessEmailRole": [
        *(
            ("lambda:InvokeFunction", function(name))
            for name in ("fetcher", "router", "gmail-forwarder", "bouncer")
        ),
        *on(INPUT_DLQ, "SendMessage"),
        *on(FORWARDER_DLQ, "SendMessage"),
        *on(BOUNCER_DLQ, "SendMessage"),
        *on(DELIVERIES, "PutItem"),
        *((action, "*") for action in LOG_DELIVERY),
        *((action, "*") for action in TRACES),
        *((f"xray:GetSampling{what}", "*") for what in ("Rules", "Targets")),
    ],
    "PipeRole": [
        *on(INPUT, "ReceiveMessage", "DeleteMessage", "GetQueueAttributes"),
        ("lambda:InvokeFunction", function("starter")),
        *observing("/aws/vendedlogs/pipes/test/ses-email-router")[:2],
    ],
    "DlqRedriveRole": [
        *(
            request
            for queue in (INPUT_DLQ, FORWARDER_DLQ, BOUNCER_DLQ)
            for request in on(
                queue,
                *("ReceiveMessage", "DeleteMessage"),
                *("ChangeMessageVisibility", "GetQueueAttributes"),
            )
        ),
        *on(INPUT, "SendMessage"),
    ],
    "QueueHealthCheckRole": [
        *(
            request
            for queue in (INPUT, INPUT_DLQ, FORWARDER_DLQ, BOUNCER_DLQ)
            for request in on(queue, "GetQueueAttributes")
        ),
        *on(PIPE, "DescribePipe"),
        *on(MACHINE, "ListExecutions"),
        *on(DELIVERIES, "BatchGetItem"),
        *on(ALARM, "DescribeAlarms"),
        ("cloudwatch:GetMetricData", "*"),
        ("ses:DescribeActiveReceiptRuleSet", "*"),
    ],
}

# What nobody here ever needs, by service: tried on every resource that a role has to do with.
NEVER = {
    "cloudwatch": ["DeleteAlarms", "PutMetricData"],
    "dynamodb": ["DeleteItem", "DeleteTable", "Scan", "Query", "BatchWriteItem"],
    "iam": ["AttachRolePolicy", "GetRole"],
    "lambda": ["DeleteFunction", "UpdateFunctionCode"],
    "logs": ["DeleteLogGroup", "CreateLogGroup", "DeleteLogStream"],
    "pipes": ["StartPipe", "StopPipe", "UpdatePipe"],
    "s3": ["DeleteObject", "PutObject", "DeleteBucket", "PutBucketPolicy"],
    "ses": ["SendRawEmail", "SendEmail", "DeleteIdentity"],
    "sqs": ["PurgeQueue", "DeleteQueue", "SetQueueAttributes"],
    "ssm": ["PutParameter", "DeleteParameter", "GetParameterHistory", "DeleteDocument"],
    "states": ["StopExecution", "DeleteStateMachine", "UpdateStateMachine", "StartSyncExecution"],
    "xray": ["DeleteGroup", "GetTraceSummaries"],
}
# What lies beside what a role may touch.
BESIDE = [
    ("s3:GetObject", f"{BUCKET}/other/1"),
    ("s3:GetObject", f"{BUCKET}/emails-2/1"),
    ("s3:GetObject", BUCKET),
    ("s3:GetObject", f"arn:aws:s3:::ses-mail-storage-{ACCOUNT}-prod/emails/1"),
    ("states:DescribeExecution", arn("states", "execution:another:1")),
    ("ssm:GetParameter", arn("ssm", "parameter/ses-mail/test/other")),
    ("ssm:GetParameter", arn("ssm", "parameter/ses-mail/test")),
    ("ssm:GetParameter", arn("ssm", "parameter/ses-mail/test/gmail-tokens-2/anna")),
    ("ssm:StartAutomationExecution", arn("ssm", "automation-definition/AWS-RunShellScript:1")),
    ("ssm:StartAutomationExecution", arn("ssm", "document/AWS-RunShellScript")),
    ("ssm:StartAutomationExecution", arn("ssm", "automation-execution-2/1")),
    ("ses:SendBounce", arn("ses", "identity/example.net")),
    ("ses:SendBounce", arn("ses", "identity/example.com.example.net")),
    ("ses:SendBounce", arn("ses", "identity/example.org.example.net")),
    ("lambda:InvokeFunction", function("token-monitor")),
    ("logs:PutLogEvents", arn("logs", "log-group:/aws/lambda/another:log-stream:1")),
    ("logs:CreateLogStream", arn("logs", "log-group:/aws/lambda/another:log-stream:1")),
    ("logs:PutLogEvents", arn("logs", "log-group:/aws/vendedlogs/pipes/test/2:log-stream:1")),
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin"),
]
HERE = {"aws:RequestedRegion": REGION, "aws:SecureTransport": "true"}
TO_SSM = {"iam:PassedToService": "ssm.amazonaws.com"}


def identity_cases(role: str) -> Iterator[Any]:
    """What the role may do, and around each of these what it may not."""
    allowed = ALLOWED[role]
    for action, resource in allowed:
        context = HERE | (TO_SSM if action == "iam:PassRole" else {})
        yield "Allow", action, resource, context
        if resource == "*":
            continue
        service = action.partition(":")[0]
        for other in (
            resource.replace("test", "prod"),
            f"{resource}-2",
            resource.replace(f":{ACCOUNT}:", f":{STRANGER}:"),
            resource.replace(REGION, "us-east-1"),
        ):
            # What a wildcard that AWS or the design forces admits is no mistake.
            wild = service == "ses" or other.startswith((EMAIL, EXECUTION, AUTOMATION))
            wild = wild or ":log-stream:" in other or other.startswith(f"{TOKENS}/")
            wild = wild or other.startswith(arn("ssm", f"automation-definition/{REDRIVE}:"))
            wild = wild or other.startswith(arn("cloudwatch", "alarm:"))
            if other != resource and not wild:
                yield None, action, other, context
        for never in NEVER[service]:
            yield None, f"{service}:{never}", resource, context
        if action == "ses:SendBounce":
            yield None, action, resource, {"aws:RequestedRegion": "us-east-1"}
            yield None, action, resource, {}
        if action == "iam:PassRole":
            yield None, action, resource, HERE
            yield None, action, resource, HERE | {"iam:PassedToService": "lambda.amazonaws.com"}
    for action, resource in BESIDE:
        yield None, action, resource, HERE | TO_SSM
    for other in sorted({request for requests in ALLOWED.values() for request in requests}):
        if other not in allowed:
            yield None, *other, HERE | TO_SSM
    for action in (f"{service}:{name}" for service, names in NEVER.items() for name in names):
        yield None, action, "*", HERE


# ── all of them ──────────────────────────────────────────────────────────────────────────────────


@cache
def documents() -> dict[str, list[dict[str, Any]]]:
    """The statements of every policy; a role's trust is `trust:` and its name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for project in (PROJECT, MONITORING):
        for name, resource in project.resources.items():
            if resource["Type"].endswith(("BucketPolicy", "TopicPolicy", "QueuePolicy")):
                found[name] = as_list(project.properties(name)["PolicyDocument"]["Statement"])
            elif resource["Type"] == "AWS::IAM::Role":
                properties = project.properties(name)
                trust = properties["AssumeRolePolicyDocument"]["Statement"]
                found[f"trust:{name}"] = as_list(trust)
                policies = [p["PolicyDocument"] for p in properties["Policies"]]
                found[name] = [s for p in policies for s in as_list(p["Statement"])]
    given = {"Environment": "test", "Domains": "example.com,example.org"}
    for name, resource in translated(ROOT, "template.yaml", given)["Resources"].items():
        if resource["Type"] == "AWS::Lambda::Permission":
            properties = dict(resource["Properties"])
            event = properties["SourceArn"]["Fn::GetAtt"][0]
            owner = PROJECT.name(properties["FunctionName"]["Ref"])
            properties |= {"FunctionName": owner, "SourceArn": arn("events", f"rule/{event}")}
            target, statement = permission(properties)
            # That of the embedded cloud names its own region.
            found[name] = [{**statement, "Resource": arn("lambda", target.split(":", 5)[5])}]
    return found


@cache
def cases() -> dict[str, list[Case]]:
    found = {name: [Case(name, *case) for case in rows] for name, rows in OF_RESOURCES.items()}
    for name, rows in TRUST.items():
        found[f"trust:{name}"] = [Case(f"trust:{name}", *case) for case in rows]
    for role in ALLOWED:
        own = ("AWS", PROJECT.arn(role))
        found[role] = [
            Case(role, decision, own, action, resource, context)
            for decision, action, resource, context in identity_cases(role)
        ]
    return found


def wrong(name: str, statements: list[dict[str, Any]]) -> list[Case]:
    """The cases that these statements decide otherwise."""
    return [
        case
        for case in cases()[name]
        if decide(statements, Request(case.principal, case.action, case.resource, case.context))
        != case.decision
    ]


def test_every_policy_has_its_cases() -> None:
    assert set(documents()) == set(cases())


@pytest.mark.parametrize("name", sorted(cases()))
def test_policy_decides_as_it_must(name: str) -> None:
    assert wrong(name, documents()[name]) == []


@pytest.mark.parametrize("env", ["test", "prod"])
@pytest.mark.parametrize("joined", ["", "another"])
@pytest.mark.parametrize("policy", ["EmailBucketPolicy", "ProcessingTopicPolicy"])
def test_the_rule_may_be_in_a_set_that_another_stack_created(
    policy: str, joined: str, env: str
) -> None:
    parameters = {"Environment": env, "Domains": ["example.com"], "ReceiptRuleSet": joined}
    project = Project(ROOT, parameters)
    statements = as_list(project.properties(policy)["PolicyDocument"]["Statement"])
    resource, action = project.arn("ProcessingTopic"), "sns:Publish"
    if policy == "EmailBucketPolicy":
        resource, action = f"{project.arn('EmailBucket')}/emails/1", "s3:PutObject"
    name, ours = f"ses-mail-{env}", joined or f"ses-mail-{env}"
    for rule_set in (name, "another", "a-third"):
        request = Request(SES, action, resource, source(rule(rule_set, name)))
        assert decide(statements, request) == ("Allow" if rule_set == ours else None)


def changes(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The statement removed, turned round, narrowed and widened in every place."""
    yield "removed", None
    turned = "Deny" if statement["Effect"] == "Allow" else "Allow"
    yield "turned round", {**statement, "Effect": turned}
    if "Principal" in statement and statement["Principal"] != "*":
        yield "anybody", {**statement, "Principal": "*"}
        yield "any account", {**statement, "Principal": {"AWS": "*"}}
        yield "another service", {**statement, "Principal": {"Service": "events2.amazonaws.com"}}
    elif statement.get("Principal") == "*":
        yield "one principal", {**statement, "Principal": {"AWS": OUTSIDER[1]}}
        yield "one service", {**statement, "Principal": {"Service": SES[1]}}
    yield from _of_actions(statement)
    yield from _of_resources(statement)
    yield from _of_conditions(statement)


def _of_actions(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    actions = as_list(statement["Action"])
    for action in actions:
        rest = [a for a in actions if a != action]
        if rest:
            yield f"without {action}", {**statement, "Action": rest}
        if not action.endswith("*"):
            service = action.partition(":")[0]
            yield f"all of {service}", {**statement, "Action": [*actions, f"{service}:*"]}
            yield "all actions", {**statement, "Action": "*"}
        else:
            yield "one action", {**statement, "Action": "s3:PutObject"}


def _of_resources(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    resources = as_list(statement.get("Resource", "*"))
    if resources == ["*"]:
        return
    for resource in resources:
        rest = [r for r in resources if r != resource]
        if rest:
            yield f"without {resource}", {**statement, "Resource": rest}
        if statement["Effect"] == "Allow":
            yield "all resources", {**statement, "Resource": "*"}
            for wider in {
                f"{resource}*" if not resource.endswith("*") else resource,
                f"{resource.rpartition('/')[0]}*" if "/" in resource else resource,
                f"{resource.rpartition(':')[0]}:*",
            } - {resource}:
                yield f"also {wider}", {**statement, "Resource": [*rest, wider]}


def _of_conditions(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    conditions = statement.get("Condition", {})
    if conditions:
        rest = {key: value for key, value in statement.items() if key != "Condition"}
        yield "without its condition", rest
    for operator, keys in conditions.items():
        for key, value in keys.items():
            changed = copy.deepcopy(statement)
            del changed["Condition"][operator][key]
            yield f"without {key}", changed
            changed = copy.deepcopy(statement)
            changed["Condition"][operator][key] = "true" if value == "false" else f"{value}x"
            yield f"another {key}", changed
            if operator.startswith(("Arn", "String")):
                changed = copy.deepcopy(statement)
                del changed["Condition"][operator][key]
                changed["Condition"].setdefault("StringLike", {})[key] = "*"
                yield f"any {key}", changed
                changed = copy.deepcopy(statement)
                changed["Condition"][f"{operator}IfExists"] = {key: value}
                del changed["Condition"][operator][key]
                yield f"{key} if it exists", changed


@pytest.mark.parametrize("name", sorted(cases()))
def test_no_statement_can_be_removed_denied_or_widened_unseen(name: str) -> None:
    statements = documents()[name]
    unseen = []
    for index, statement in enumerate(statements):
        for what, changed in changes(statement):
            new = [*statements[:index], *([changed] if changed else []), *statements[index + 1 :]]
            if not wrong(name, new):
                unseen.append(f"{index}: {what}: {statement.get('Resource')}")
    assert unseen == []
