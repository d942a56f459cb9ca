"""Who may do what between the stack's resources: the policies of buckets, topics, queues and
functions, and who may assume a role.

AWS finds out at each call, and stops mail then; here a stack in which something that has to happen
would be refused does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from local.iam import ACCOUNT, REGION, Role
from local.policy import Request, Statement, decide

if TYPE_CHECKING:
    from local.stack import Stack

# What SES stores when a rule is created, and so what it must be allowed to.
SETUP_OBJECT = "AMAZON_SES_SETUP_NOTIFICATION"
# Step Functions User Guide, "Logging using CloudWatch Logs" and "Tracing with X-Ray": of no
# resource, and asked for when the machine is created.
LOG_DELIVERY = (
    *(f"logs:{verb}LogDelivery" for verb in ("Create", "Get", "Update", "Delete")),
    *("logs:ListLogDeliveries", "logs:PutResourcePolicy", "logs:DescribeResourcePolicies"),
    "logs:DescribeLogGroups",
)
TRACES = ("xray:PutTraceSegments", "xray:PutTelemetryRecords")
SAMPLING = ("xray:GetSamplingRules", "xray:GetSamplingTargets")


class NotAllowedError(Exception):
    """The message says who would be refused what."""


class Access:
    """The policies of one stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._roles = {
            stack.attribute(name, "Arn"): name for name in stack.of_type("AWS::IAM::Role")
        }
        self.policies = _policies(stack)
        self.documents = {
            properties["Name"]: properties["Content"]["assumeRole"]
            for properties in map(stack.properties, stack.of_type("AWS::SSM::Document"))
        }

    def role(self, arn: str) -> Role:
        """The role as what it may do."""
        return Role(self._roles[arn], self.statements(arn), self.policies, self.documents)

    def statements(self, role: str) -> list[Statement]:
        """What a role's own policies say."""
        properties = self._stack.properties(self._roles[role])
        if properties.get("ManagedPolicyArns"):
            raise NotImplementedError("local/ reads inline policies only")
        return _statements(*(p["PolicyDocument"] for p in properties.get("Policies", [])))

    def check(self) -> None:
        """Raises NotAllowedError for the first thing that would be refused."""
        for kind, check in CHECKS.items():
            for name in self._stack.of_type(kind):
                check(self, name, self._stack.properties(name))

    # -- who may what ------------------------------------------------------------------------------

    def _assume(self, service: str, role: str, source: str | None) -> None:
        document = self._stack.properties(self._roles[role])["AssumeRolePolicyDocument"]
        # Lambda names no source; Pipes, Step Functions and Systems Manager do.
        context = _of(source, with_account=True) if source else {}
        self._ask(service, "sts:AssumeRole", role, context, _statements(document))

    def _serve(
        self, service: str, action: str, resource: str, source: str, with_account: bool
    ) -> None:
        statements = [
            statement
            for arn, found in self.policies.items()
            if resource == arn or resource.startswith(f"{arn}/")
            for statement in found
        ]
        self._ask(service, action, resource, _of(source, with_account), statements)

    def _ask(
        self,
        service: str,
        action: str,
        resource: str,
        context: Mapping[str, str],
        statements: Sequence[Statement],
    ) -> None:
        principal = ("Service", f"{service}.amazonaws.com")
        if decide(statements, Request(principal, action, resource, context)) != "Allow":
            raise NotAllowedError(f"{service} may not {action} on {resource} with {dict(context)}")

    def _need(self, role: str, actions: Sequence[str], resource: str) -> None:
        for action in actions:
            if not self.role(role).allows(action, resource):
                raise NotAllowedError(f"{self._roles[role]} may not {action} on {resource}")

    # -- what has to happen, by type of resource ---------------------------------------------------

    def _function(self, _: str, properties: Any) -> None:
        role = properties["Role"]
        self._assume("lambda", role, None)
        if "LoggingConfig" in properties:
            group = f"log-group:{properties['LoggingConfig']['LogGroup']}:log-stream:s"
            self._need(role, ("logs:CreateLogStream", "logs:PutLogEvents"), _arn("logs", group))
        if properties.get("TracingConfig", {}).get("Mode") == "Active":
            self._need(role, TRACES, "*")

    def _state_machine(self, name: str, properties: Any) -> None:
        role = properties["RoleArn"]
        self._assume("states", role, self._stack.attribute(name, "Arn"))
        if "LoggingConfiguration" in properties:
            self._need(role, LOG_DELIVERY, "*")
        if properties.get("TracingConfiguration", {}).get("Enabled"):
            self._need(role, (*TRACES, *SAMPLING), "*")

    def _pipe(self, name: str, properties: Any) -> None:
        role = properties["RoleArn"]
        self._assume("pipes", role, self._stack.attribute(name, "Arn"))
        # EventBridge User Guide, "Amazon EventBridge Pipes permissions": SQS.
        source = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
        self._need(role, source, properties["Source"])
        self._need(role, ("lambda:InvokeFunction",), properties["Target"])
        log = properties.get("LogConfiguration", {}).get("CloudwatchLogsLogDestination")
        if log:
            stream = f"{log['LogGroupArn'].removesuffix(':*')}:log-stream:s"
            self._need(role, ("logs:CreateLogStream", "logs:PutLogEvents"), stream)

    def _receipt_rule(self, _: str, properties: Any) -> None:
        rule = f"receipt-rule/{properties['Rule']['Name']}"
        source = _arn("ses", f"receipt-rule-set/{properties['RuleSetName']}:{rule}")
        for action in properties["Rule"]["Actions"]:
            s3 = action["S3Action"]
            key = f"{s3.get('ObjectKeyPrefix', '')}{SETUP_OBJECT}"
            stored = f"arn:aws:s3:::{s3['BucketName']}/{key}"
            self._serve("ses", "s3:PutObject", stored, source, with_account=True)
            self._serve("ses", "sns:Publish", s3["TopicArn"], source, with_account=True)

    def _subscription(self, _: str, properties: Any) -> None:
        if properties["Protocol"] != "sqs":
            return
        dead_letters = properties.get("RedrivePolicy", {}).get("deadLetterTargetArn")
        for queue in (properties["Endpoint"], *([dead_letters] if dead_letters else [])):
            # AWS documents aws:SourceArn of this call, and no account.
            self._serve("sns", "sqs:SendMessage", queue, properties["TopicArn"], with_account=False)

    def _rule(self, name: str, properties: Any) -> None:
        source = self._stack.attribute(name, "Arn")
        for target in properties["Targets"]:
            self._serve("events", "lambda:InvokeFunction", target["Arn"], source, False)

    def _document(self, _: str, properties: Any) -> None:
        execution = _arn("ssm", "automation-execution/00000000-0000-0000-0000-000000000000")
        self._assume("ssm", properties["Content"]["assumeRole"], execution)

    def _alarm(self, _: str, properties: Any) -> None:
        source = _arn("cloudwatch", f"alarm:{properties['AlarmName']}")
        for topic in (*properties.get("AlarmActions", []), *properties.get("OKActions", [])):
            self._serve("cloudwatch", "sns:Publish", topic, source, with_account=True)


CHECKS: dict[str, Callable[[Access, str, Any], None]] = {
    "AWS::Lambda::Function": Access._function,
    "AWS::StepFunctions::StateMachine": Access._state_machine,
    "AWS::Pipes::Pipe": Access._pipe,
    "AWS::SES::ReceiptRule": Access._receipt_rule,
    "AWS::SNS::Subscription": Access._subscription,
    "AWS::Events::Rule": Access._rule,
    "AWS::SSM::Document": Access._document,
    "AWS::CloudWatch::Alarm": Access._alarm,
}


def _policies(stack: Stack) -> dict[str, list[Statement]]:
    """The statements of each resource's own policies, by its ARN."""
    found: dict[str, list[Statement]] = {}

    def add(arn: str, statements: Sequence[Statement]) -> None:
        for statement in statements:
            if "Principal" not in statement:
                raise ValueError(f"the policy of {arn} has a statement without Principal")
        found.setdefault(arn, []).extend(statements)

    for name in stack.of_type("AWS::S3::BucketPolicy"):
        properties = stack.properties(name)
        add(f"arn:aws:s3:::{properties['Bucket']}", _statements(properties["PolicyDocument"]))
    for name in stack.of_type("AWS::SNS::TopicPolicy"):
        properties = stack.properties(name)
        for topic in properties["Topics"]:
            add(topic, _statements(properties["PolicyDocument"]))
    for name in stack.of_type("AWS::SQS::QueuePolicy"):
        properties = stack.properties(name)
        for url in properties["Queues"]:
            add(_arn("sqs", url.rsplit("/", 1)[-1]), _statements(properties["PolicyDocument"]))
    for name in stack.of_type("AWS::Lambda::Permission"):
        arn, statement = permission(stack.properties(name))
        add(arn, [statement])
    return found


def permission(properties: Mapping[str, Any]) -> tuple[str, Statement]:
    """(the function's ARN, the statement that AWS makes of an AWS::Lambda::Permission)."""
    given = dict(properties)
    name = given.pop("FunctionName").rsplit(":", 1)[-1]
    arn = _arn("lambda", f"function:{name}")
    conditions: dict[str, Any] = {}
    if "SourceArn" in given:
        conditions["ArnLike"] = {"AWS:SourceArn": given.pop("SourceArn")}
    if "SourceAccount" in given:
        conditions["StringEquals"] = {"AWS:SourceAccount": given.pop("SourceAccount")}
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": given.pop("Principal")},
        "Action": given.pop("Action"),
        "Resource": arn,
        **({"Condition": conditions} if conditions else {}),
    }
    if given:
        raise NotImplementedError(f"local/access.py reads no {', '.join(given)} of a permission")
    return arn, statement


def _statements(*documents: Mapping[str, Any]) -> list[Statement]:
    for document in documents:
        # The version before it takes some elements for something else.
        if document.get("Version") != "2012-10-17":
            raise NotImplementedError(f"local/access.py reads no policy of {document}")
    found = [statement for document in documents for statement in _list(document["Statement"])]
    return list(found)


def _of(source: str, with_account: bool) -> dict[str, str]:
    account = {"aws:SourceAccount": ACCOUNT} if with_account else {}
    return {"aws:SourceArn": source, "aws:SecureTransport": "true", **account}


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
