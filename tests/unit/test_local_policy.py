"""The evaluator of IAM policies, row by row as AWS documents it (IAM User Guide)."""

import pytest

from local.policy import Request, decide

QUEUE = "arn:aws:sqs:eu-west-1:123456789012:q"
ROLE = ("AWS", "arn:aws:iam::123456789012:role/r")
SNS = ("Service", "sns.amazonaws.com")
TOPIC = "arn:aws:sns:eu-west-1:123456789012:t"
ALLOW = {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": QUEUE}
DENY = {**ALLOW, "Effect": "Deny"}


def ask(statements, principal=ROLE, action="sqs:SendMessage", resource=QUEUE, **context):
    keys = {name.replace("_", ":"): value for name, value in context.items()}
    return decide(statements, Request(principal, action, resource, keys))


@pytest.mark.parametrize(
    ("statements", "decision"),
    [
        ([], None),  # implicit deny
        ([ALLOW], "Allow"),
        ([DENY], "Deny"),
        ([ALLOW, DENY], "Deny"),  # an explicit deny wins …
        ([DENY, ALLOW], "Deny"),  # … in any order
        ([ALLOW, ALLOW], "Allow"),
        ([{**DENY, "Resource": f"{QUEUE}2"}, ALLOW], "Allow"),  # of something else
    ],
)
def test_explicit_deny_allow_implicit_deny(statements, decision):
    assert ask(statements) == decision


@pytest.mark.parametrize(
    ("pattern", "action", "matches"),
    [
        ("sqs:SendMessage", "sqs:SendMessage", True),
        ("SQS:sendmessage", "sqs:SendMessage", True),  # actions ignore case
        ("sqs:Send*", "sqs:SendMessage", True),
        ("sqs:SendMessag?", "sqs:SendMessage", True),
        ("sqs:*", "sqs:PurgeQueue", True),
        ("*", "sqs:PurgeQueue", True),
        (["sns:Publish", "sqs:SendMessage"], "sqs:SendMessage", True),
        ("sqs:Send", "sqs:SendMessage", False),
        ("sqs:[S]endMessage", "sqs:SendMessage", False),  # no character classes
        ("sqs.SendMessage", "sqs:SendMessage", False),
    ],
)
def test_actions(pattern, action, matches):
    assert (ask([{**ALLOW, "Action": pattern}], action=action) == "Allow") is matches


@pytest.mark.parametrize(
    ("pattern", "resource", "matches"),
    [
        (QUEUE, QUEUE, True),
        ("*", QUEUE, True),
        ("arn:aws:sqs:*:*:q", QUEUE, True),
        ("arn:*:sqs:eu-west-1:123456789012:q", QUEUE, True),
        (f"{QUEUE}*", f"{QUEUE}-dlq", True),
        ("arn:aws:s3:::b/emails/*", "arn:aws:s3:::b/emails/a/b", True),
        ([f"{QUEUE}2", QUEUE], QUEUE, True),
        (QUEUE.upper(), QUEUE, False),  # names of resources do not ignore case
        (QUEUE, f"{QUEUE}-dlq", False),
        ("arn:aws:s3:::b", "arn:aws:s3:::b/emails/a", False),
        ("arn:aws:s3:::b/*", "arn:aws:s3:::b", False),
    ],
)
def test_resources(pattern, resource, matches):
    assert (ask([{**ALLOW, "Resource": pattern}], resource=resource) == "Allow") is matches


@pytest.mark.parametrize(
    ("element", "principal", "matches"),
    [
        ("*", SNS, True),
        ("*", ROLE, True),
        ({"Service": "sns.amazonaws.com"}, SNS, True),
        ({"Service": ["ses.amazonaws.com", "sns.amazonaws.com"]}, SNS, True),
        ({"Service": "ses.amazonaws.com"}, SNS, False),
        ({"Service": "*.amazonaws.com"}, SNS, False),  # no wildcards in names
        ({"Service": "sns.amazonaws.com"}, ROLE, False),
        ({"AWS": "*"}, ROLE, True),
        ({"AWS": ROLE[1]}, ROLE, True),
        ({"AWS": "123456789012"}, ROLE, True),
        ({"AWS": "arn:aws:iam::123456789012:root"}, ROLE, True),
        ({"AWS": "210987654321"}, ROLE, False),
        ({"AWS": f"{ROLE[1]}*"}, ROLE, False),
        ({"AWS": "*"}, SNS, False),
    ],
)
def test_principals(element, principal, matches):
    assert (ask([{**ALLOW, "Principal": element}], principal) == "Allow") is matches


@pytest.mark.parametrize(
    ("condition", "given", "holds"),
    [
        ({"StringEquals": {"aws:x": "a"}}, "a", True),
        ({"StringEquals": {"aws:x": "a"}}, "A", False),
        ({"StringEquals": {"AWS:X": "a"}}, "a", True),  # names of keys ignore case
        ({"StringEquals": {"aws:x": ["a", "b"]}}, "b", True),  # values: one of them
        ({"StringEquals": {"aws:x": "*"}}, "a", False),  # no wildcard
        ({"StringEquals": {"aws:x": "a"}}, None, False),  # a missing key does not match …
        ({"StringEqualsIfExists": {"aws:x": "a"}}, None, True),
        ({"StringEqualsIfExists": {"aws:x": "a"}}, "b", False),
        ({"StringEqualsIgnoreCase": {"aws:x": "a"}}, "A", True),
        ({"StringNotEquals": {"aws:x": "a"}}, "b", True),
        ({"StringNotEquals": {"aws:x": ["a", "b"]}}, "b", False),  # none of them
        ({"StringNotEquals": {"aws:x": "a"}}, None, True),  # … and so a negated one does
        ({"StringLike": {"aws:x": "a*c"}}, "abc", True),
        ({"StringLike": {"aws:x": "a?c"}}, "abbc", False),
        ({"StringNotLike": {"aws:x": "a*"}}, "abc", False),
        ({"ArnEquals": {"aws:x": TOPIC}}, TOPIC, True),
        ({"ArnEquals": {"aws:x": f"{TOPIC}*"}}, f"{TOPIC}2", True),  # as ArnLike
        ({"ArnLike": {"aws:x": "arn:aws:sns:*:123456789012:*"}}, TOPIC, True),
        ({"ArnLike": {"aws:x": "arn:aws:sns:*"}}, TOPIC, False),  # part by part
        ({"ArnLike": {"aws:x": "arn:aws:*:123456789012:t"}}, TOPIC, False),
        ({"ArnLike": {"aws:x": TOPIC}}, None, False),
        ({"ArnNotLike": {"aws:x": TOPIC}}, None, True),
        ({"ArnNotEquals": {"aws:x": TOPIC}}, f"{TOPIC}2", True),
        ({"Bool": {"aws:x": "false"}}, "false", True),
        ({"Bool": {"aws:x": "false"}}, "true", False),
        ({"Bool": {"aws:x": False}}, "false", True),  # YAML's own
        ({"Bool": {"aws:x": "false"}}, None, False),
        ({"BoolIfExists": {"aws:x": "false"}}, None, True),
        ({"Null": {"aws:x": "true"}}, None, True),
        ({"Null": {"aws:x": "true"}}, "a", False),
        ({"Null": {"aws:x": "false"}}, "a", True),
        ({"StringEquals": {"aws:x": "a", "aws:y": "b"}}, "a", False),  # keys: all of them
        ({"StringEquals": {"aws:x": "a"}, "Null": {"aws:y": "true"}}, "a", True),  # operators too
        ({"StringEquals": {"aws:x": "a"}, "StringLike": {"aws:x": "b*"}}, "a", False),
        ({}, "a", True),
    ],
)
def test_conditions(condition, given, holds):
    context = {} if given is None else {"aws_x": given}
    assert (ask([{**ALLOW, "Condition": condition}], **context) == "Allow") is holds


@pytest.mark.parametrize(
    "more",
    [
        {"NotAction": "sqs:SendMessage"},
        {"NotResource": QUEUE},
        {"NotPrincipal": "*"},
        {"Condition": {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}}},
        {"Condition": {"NumericLessThan": {"s3:max-keys": "10"}}},
        {"Condition": {"ForAnyValue:StringEquals": {"aws:TagKeys": "a"}}},
        {"Condition": {"NotStringEquals": {"aws:x": "a"}}},
        {"Condition": {"StringEquals": {"aws:x": "${aws:username}"}}},
        {"Principal": {"Federated": "accounts.google.com"}},
    ],
    ids=str,
)
def test_what_is_not_evaluated_fails_loudly_even_where_it_would_not_match(more):
    statement = {**ALLOW, "Action": "sns:Publish"} if "Principal" not in more else ALLOW
    with pytest.raises(NotImplementedError):
        ask([{**statement, **more}])


def test_an_effect_is_allow_or_deny():
    with pytest.raises(ValueError, match="allow"):
        ask([{**ALLOW, "Effect": "allow"}])
