"""The AWS clients, made once per Lambda environment and only when first used."""

from functools import cache
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ses import SESClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_stepfunctions import SFNClient

# Seconds. Short: a Lambda that hangs on a lost connection is worth less than a retry of its step.
_CONNECT, _READ, _ATTEMPTS = 2, 8, 2
_CONFIG = Config(
    connect_timeout=_CONNECT,
    read_timeout=_READ,
    retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
)
# What a call may take at worst. In mode `standard` botocore waits at most a second before the
# second attempt.
LONGEST_CALL = _ATTEMPTS * (_CONNECT + _READ) + 1
# A lost answer makes the client send the call again by itself, which for a bounce means two.
_ONCE = Config(
    connect_timeout=3, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 1}
)


@cache
def dynamodb() -> "DynamoDBClient":
    """For the routing and deliveries tables."""
    return boto3.client("dynamodb", config=_CONFIG)


@cache
def s3() -> "S3Client":
    """For the stored emails."""
    return boto3.client("s3", config=_CONFIG)


@cache
def ses() -> "SESClient":
    """For SendBounce alone: never retried by the client itself."""
    return boto3.client("ses", config=_ONCE)


@cache
def sqs() -> "SQSClient":
    """For parking in a dead-letter queue."""
    return boto3.client("sqs", config=_CONFIG)


@cache
def ssm() -> "SSMClient":
    """For the Gmail credentials."""
    return boto3.client("ssm", config=_CONFIG)


@cache
def stepfunctions() -> "SFNClient":
    """For the executions, one per email."""
    return boto3.client("stepfunctions", config=_CONFIG)
