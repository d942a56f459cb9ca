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
