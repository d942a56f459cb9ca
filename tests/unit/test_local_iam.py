"""What the embedded cloud's IAM allows and what it needs to know about a call."""

import pytest
from botocore.exceptions import ClientError

from local.iam import Role

BUCKET = "arn:aws:s3:::mail"
TABLE = "arn:aws:dynamodb:ap-southeast-2:123456789012:table/t"
ROLE = Role(
    "r",
    [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{BUCKET}/emails/*"},
        {"Effect": "Allow", "Action": ["dynamodb:Get*", "dynamodb:PutItem"], "Resource": [TABLE]},
        {"Effect": "Allow", "Action": "ses:SendBounce", "Resource": "arn:aws:ses:*:*:identity/a.b"},
        {"Effect": "Allow", "Action": "sqs:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "sqs:DeleteMessage", "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": "ssm:GetParameter",
            "Resource": "arn:aws:ssm:ap-southeast-2:123456789012:parameter/mail/token",
        },
    ],
)
PUT = {"TableName": "t", "Item": {}}


@pytest.mark.parametrize(
    ("service", "operation", "params", "missing"),
    [
        ("s3", "GetObject", {"Bucket": "mail", "Key": "emails/1"}, None),
        ("s3", "HeadObject", {"Bucket": "mail", "Key": "emails/1"}, None),
        ("s3", "GetObject", {"Bucket": "mail", "Key": "other/1"}, "s3:GetObject"),
        ("s3", "GetObject", {"Bucket": "mail2", "Key": "emails/1"}, "s3:GetObject"),
        ("s3", "ListObjectsV2", {"Bucket": "mail"}, "s3:ListBucket"),
        ("dynamodb", "GetItem", {"TableName": "t"}, None),
        ("dynamodb", "GetItem", {"TableName": "t2"}, "dynamodb:GetItem"),
        ("dynamodb", "BatchGetItem", {"RequestItems": {"t": {}}}, "dynamodb:BatchGetItem"),
        ("dynamodb", "TransactWriteItems", {"TransactItems": [{"Put": PUT}]}, None),
        (
            "dynamodb",
            "TransactWriteItems",
            {"TransactItems": [{"Put": PUT}, {"ConditionCheck": PUT}]},
            "dynamodb:ConditionCheckItem",
        ),
        (
            "dynamodb",
            "TransactWriteItems",
            {"TransactItems": [{"Update": PUT}]},
            "dynamodb:UpdateItem",
        ),
        ("ses", "SendBounce", {"BounceSender": "mailer-daemon@a.b"}, None),
        ("ses", "SendBounce", {"BounceSender": "mailer-daemon@c.d"}, "ses:SendBounce"),
        ("sqs", "SendMessage", {"QueueUrl": "https://sqs/123/q"}, None),
        ("sqs", "DeleteMessage", {"QueueUrl": "https://sqs/123/q"}, "sqs:DeleteMessage"),
        ("ssm", "GetParameter", {"Name": "/mail/token"}, None),
        ("ssm", "GetParameter", {"Name": "/mail/other"}, "ssm:GetParameter"),
    ],
)
def test_calls(service, operation, params, missing):
    message = ROLE.missing(service, operation, params)
    assert (missing or "") in (message or "")
    assert (message is None) == (missing is None)


def test_a_call_that_nobody_has_written_down_is_an_error():
    with pytest.raises(NotImplementedError, match="s3:DeleteBucket"):
        ROLE.check("s3", "DeleteBucket", {"Bucket": "mail"})


@pytest.mark.parametrize(
    ("service", "operation", "params", "code"),
    [
        ("s3", "ListObjectsV2", {"Bucket": "mail"}, "AccessDenied"),
        ("dynamodb", "GetItem", {"TableName": "t2"}, "AccessDeniedException"),
    ],
)
def test_the_error_is_the_one_that_aws_answers(service, operation, params, code):
    with pytest.raises(ClientError) as refusal:
        ROLE.check(service, operation, params)
    assert refusal.value.response["Error"]["Code"] == code


def test_a_pattern_has_no_character_classes():
    role = Role("r", [{"Effect": "Allow", "Action": "a:b", "Resource": "x[ab]"}])
    assert role.allows("a:b", "x[ab]")
    assert not role.allows("a:b", "xa")


OWN = {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": "*"}
QUEUE = "arn:aws:sqs:ap-southeast-2:123456789012:q"
ANYBODY = {"Principal": "*", "Action": "sqs:*", "Resource": QUEUE}
SEND = ("sqs", "SendMessage", {"QueueUrl": "https://sqs/123456789012/q"})


@pytest.mark.parametrize(
    ("own", "of_queue", "allowed"),
    [
        ([OWN], [], True),
        ([], [{**ANYBODY, "Effect": "Allow"}], True),  # within one account either is enough
        ([], [], False),
        ([OWN], [{**ANYBODY, "Effect": "Deny"}], False),
        ([{**OWN, "Effect": "Deny"}], [{**ANYBODY, "Effect": "Allow"}], False),
        ([], [{**ANYBODY, "Effect": "Allow", "Principal": {"AWS": "210987654321"}}], False),
    ],
)
def test_the_queue_s_own_policy_counts_too(own, of_queue, allowed):
    role = Role("r", own, {QUEUE: of_queue})
    assert (role.missing(*SEND) is None) is allowed


def test_a_bucket_s_policy_speaks_of_its_objects():
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"{BUCKET}/*"}
    own = [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}]
    get = ("s3", "GetObject", {"Bucket": "mail", "Key": "emails/1"})
    assert Role("r", own).missing(*get) is None
    assert "s3:GetObject" in (Role("r", own, {BUCKET: [deny]}).missing(*get) or "")


@pytest.mark.parametrize(("region", "allowed"), [("ap-southeast-2", True), ("us-east-1", False)])
def test_the_region_that_is_asked_is_known(region, allowed):
    condition = {"StringEquals": {"aws:RequestedRegion": region}}
    role = Role("r", [{**OWN, "Condition": condition}])
    assert (role.missing(*SEND) is None) is allowed


START = "ssm:StartAutomationExecution"
IN_SSM = "arn:aws:ssm:ap-southeast-2:123456789012"
STARTED = [
    f"{IN_SSM}:automation-definition/Redrive:*",
    f"{IN_SSM}:document/Redrive",
    f"{IN_SSM}:automation-execution/*",
]
PASSED = "arn:aws:iam::123456789012:role/redrive"
TO_SSM = {"StringEquals": {"iam:PassedToService": "ssm.amazonaws.com"}}
TO_LAMBDA = {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}


@pytest.mark.parametrize(
    ("resources", "passed", "condition", "missing"),
    [
        (STARTED, PASSED, TO_SSM, None),
        (STARTED, PASSED, {}, None),
        (STARTED[1:], PASSED, TO_SSM, "automation-definition/Redrive:$DEFAULT"),
        ([STARTED[0], STARTED[2]], PASSED, TO_SSM, "document/Redrive"),
        (STARTED[:2], PASSED, TO_SSM, "automation-execution/"),
        (STARTED, f"{PASSED}-2", TO_SSM, "iam:PassRole"),
        (STARTED, PASSED, TO_LAMBDA, "iam:PassRole"),
    ],
)
def test_starting_an_automation_takes_all_that_aws_may_ask_for(
    resources, passed, condition, missing
):
    statements = [
        {"Effect": "Allow", "Action": START, "Resource": resources},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": passed, "Condition": condition},
    ]
    role = Role("r", statements, documents={"Redrive": PASSED})
    message = role.missing("ssm", "StartAutomationExecution", {"DocumentName": "Redrive"})
    assert (message is None) == (missing is None)
    assert (missing or "") in (message or "")
