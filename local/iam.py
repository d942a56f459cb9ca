"""IAM, as far as a missing permission is concerned: the role in the template decides what may be
called, together with the policies of buckets, queues and topics.

There are no boundaries or session policies. Used in the worker processes and by the state machine;
imports only policy.py of this project, because a worker sees nothing else of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from local.policy import Request, Statement, decide

ACCOUNT = "123456789012"
REGION = "ap-southeast-2"
PASSED_TO = "ssm.amazonaws.com"  # of iam:PassRole

# (IAM action, resource ARN) pairs that a call needs; all of them must be allowed.
Needs = list[tuple[str, str]]


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _queue(params: Mapping[str, Any]) -> str:
    return _arn("sqs", params["QueueUrl"].rsplit("/", 1)[-1])


def _table(name: str) -> str:
    return name if name.startswith("arn:") else _arn("dynamodb", f"table/{name}")


def _object(params: Mapping[str, Any]) -> str:
    return f"arn:aws:s3:::{params['Bucket']}/{params['Key']}"


def _transaction(params: Mapping[str, Any]) -> Needs:
    # Each item needs the right of its single-item call; ConditionCheck has its own.
    actions = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem"}
    return [
        (f"dynamodb:{actions.get(kind, 'ConditionCheckItem')}", _table(part["TableName"]))
        for item in params["TransactItems"]
        for kind, part in item.items()
    ]


def _table_call(action: str) -> Callable[[Mapping[str, Any]], Needs]:
    return lambda params: [(f"dynamodb:{action}", _table(params["TableName"]))]


def _queue_call(action: str) -> Callable[[Mapping[str, Any]], Needs]:
    return lambda params: [(f"sqs:{action}", _queue(params))]


def _automation(params: Mapping[str, Any]) -> Needs:
    """All that AWS may ask for: older pages and its former reference name the definition with its
    version, the examples of the Systems Manager User Guide ("Setting up identity based policies
    examples", 2026) the document and the execution."""
    version = params.get("DocumentVersion", "$DEFAULT")
    resources = (
        f"automation-definition/{params['DocumentName']}:{version}",
        f"document/{params['DocumentName']}",
        "automation-execution/00000000-0000-0000-0000-000000000000",
    )
    return [("ssm:StartAutomationExecution", _arn("ssm", name)) for name in resources]


CALLS: dict[tuple[str, str], Callable[[Mapping[str, Any]], Needs]] = {
    ("s3", "GetObject"): lambda p: [("s3:GetObject", _object(p))],
    ("s3", "HeadObject"): lambda p: [("s3:GetObject", _object(p))],
    ("s3", "PutObject"): lambda p: [("s3:PutObject", _object(p))],
    ("s3", "ListObjectsV2"): lambda p: [("s3:ListBucket", f"arn:aws:s3:::{p['Bucket']}")],
    **{
        ("dynamodb", action): _table_call(action)
        for action in ("GetItem", "PutItem", "UpdateItem", "DeleteItem", "Query", "Scan")
    },
    ("dynamodb", "BatchGetItem"): lambda p: [
        ("dynamodb:BatchGetItem", _table(name)) for name in p["RequestItems"]
    ],
    ("dynamodb", "TransactWriteItems"): _transaction,
    **{
        ("sqs", action): _queue_call(action)
        for action in ("SendMessage", "ReceiveMessage", "DeleteMessage", "GetQueueAttributes")
    },
    ("sqs", "ChangeMessageVisibilityBatch"): _queue_call("ChangeMessageVisibility"),
    ("stepfunctions", "StartExecution"): lambda p: [
        ("states:StartExecution", p["stateMachineArn"])
    ],
    ("stepfunctions", "ListExecutions"): lambda p: [
        ("states:ListExecutions", p["stateMachineArn"])
    ],
    ("stepfunctions", "DescribeExecution"): lambda p: [
        ("states:DescribeExecution", p["executionArn"])
    ],
    ("ssm", "GetParameter"): lambda p: [
        ("ssm:GetParameter", _arn("ssm", f"parameter/{p['Name'].lstrip('/')}"))
    ],
    ("ssm", "GetParametersByPath"): lambda p: [
        ("ssm:GetParametersByPath", _arn("ssm", f"parameter/{p['Path'].lstrip('/')}"))
    ],
    ("ssm", "StartAutomationExecution"): _automation,
    ("pipes", "DescribePipe"): lambda p: [
        ("pipes:DescribePipe", _arn("pipes", f"pipe/{p['Name']}"))
    ],
    ("cloudwatch", "GetMetricData"): lambda p: [("cloudwatch:GetMetricData", "*")],
    ("cloudwatch", "DescribeAlarms"): lambda p: [
        ("cloudwatch:DescribeAlarms", _arn("cloudwatch", "alarm:*"))
    ],
    ("ses", "DescribeActiveReceiptRuleSet"): lambda p: [("ses:DescribeActiveReceiptRuleSet", "*")],
    ("ses", "SendBounce"): lambda p: [
        ("ses:SendBounce", _arn("ses", f"identity/{p['BounceSender'].rpartition('@')[2]}"))
    ],
    ("lambda", "Invoke"): lambda p: [
        (
            "lambda:InvokeFunction",
            p["FunctionName"]
            if p["FunctionName"].startswith("arn:")
            else _arn("lambda", f"function:{p['FunctionName']}"),
        )
    ],
}


class Role:
    """The statements of one role, with every intrinsic function of the template resolved.

    `policies` are those of resources of the account, by ARN; `documents` names the role that each
    automation document runs under.
    """

    def __init__(
        self,
        name: str,
        statements: Sequence[Statement],
        policies: Mapping[str, Sequence[Statement]] | None = None,
        documents: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._statements = statements
        self._policies = policies or {}
        self._documents = documents or {}

    def allows(self, action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
        """Whether the role or the resource's own policy allows, and neither denies: within one
        account either is enough."""
        request = Request(
            ("AWS", f"arn:aws:iam::{ACCOUNT}:role/{self.name}"),
            action,
            resource,
            {"aws:RequestedRegion": REGION, "aws:SecureTransport": "true", **(context or {})},
        )
        of_resource = [
            statement
            for arn, statements in self._policies.items()
            if resource == arn or resource.startswith(f"{arn}/")
            for statement in statements
        ]
        decisions = {decide(self._statements, request), decide(of_resource, request)}
        return "Allow" in decisions and "Deny" not in decisions

    def missing(self, service: str, operation: str, params: Mapping[str, Any]) -> str | None:
        """The first right that the call lacks, as a sentence, or None.

        Raises NotImplementedError for a call whose rights nobody has written down here.
        """
        needs = CALLS.get((service, operation))
        if needs is None:
            raise NotImplementedError(
                f"local/iam.py does not know what {service}:{operation} needs"
            )
        for action, resource in needs(params):
            if not self.allows(action, resource):
                return self._refusal(action, resource)
        if operation == "StartAutomationExecution":
            # Whoever starts a document hands over the role that it runs under.
            passed = self._documents[params["DocumentName"]]
            if not self.allows("iam:PassRole", passed, {"iam:PassedToService": PASSED_TO}):
                return self._refusal("iam:PassRole", passed)
        return None

    def _refusal(self, action: str, resource: str) -> str:
        return (
            f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{self.name} is not authorized to "
            f"perform: {action} on resource: {resource} because no identity-based policy "
            f"allows the {action} action"
        )

    def check(self, service: str, operation: str, params: Mapping[str, Any]) -> None:
        """Raises the ClientError that AWS answers if the role lacks a right for the call."""
        from botocore.exceptions import ClientError

        message = self.missing(service, operation, params)
        if message:
            code = "AccessDenied" if service in {"s3", "ses"} else "AccessDeniedException"
            raise ClientError(_error(code, message, 403), operation)


def enforce(role: Role) -> None:
    """Check every call that this process makes through botocore from now on."""
    from botocore import client
    from botocore.exceptions import ClientError

    base: Any = client.BaseClient
    original = base._make_api_call

    def checked(self: Any, operation_name: str, api_params: Any) -> Any:
        service = self.meta.service_model.service_name
        role.check(service, operation_name, api_params)
        try:
            return original(self, operation_name, api_params)
        except ClientError as error:
            # Whoever may not list a bucket is not told that a key is missing.
            bucket = f"arn:aws:s3:::{api_params.get('Bucket')}"
            if (
                service == "s3"
                and error.response["Error"]["Code"] in {"NoSuchKey", "404"}
                and not role.allows("s3:ListBucket", bucket)
            ):
                denied = _error("AccessDenied", "Access Denied", 403)
                raise ClientError(denied, operation_name) from None
            raise

    base._make_api_call = checked


def _error(code: str, message: str, status: int) -> Any:
    return {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "RequestId": "local", "RetryAttempts": 0},
    }
