"""What every command works on: one environment of one account, and the names of its resources."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_pipes import EventBridgePipesClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ses import SESClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_stepfunctions import SFNClient

# Without the environment, as queue_url takes it.
INPUT_QUEUE = "ses-email-input"

_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard"})


@dataclass
class Session:
    """AWS clients and names of the environment that the global options chose.

    Options that are absent leave the choice to boto3: AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL.
    """

    environment: str
    profile: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    as_json: bool = False

    @cached_property
    def _boto3(self) -> boto3.session.Session:
        return boto3.session.Session(profile_name=self.profile, region_name=self.region)

    @property
    def _options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint_url, "config": _CONFIG}

    # -- clients -----------------------------------------------------------------------------------

    @cached_property
    def cloudwatch(self) -> CloudWatchClient:
        return self._boto3.client("cloudwatch", **self._options)

    @cached_property
    def dynamodb(self) -> DynamoDBClient:
        return self._boto3.client("dynamodb", **self._options)

    @cached_property
    def pipes(self) -> EventBridgePipesClient:
        return self._boto3.client("pipes", **self._options)

    @cached_property
    def s3(self) -> S3Client:
        return self._boto3.client("s3", **self._options)

    @cached_property
    def ses(self) -> SESClient:
        return self._boto3.client("ses", **self._options)

    @cached_property
    def sqs(self) -> SQSClient:
        return self._boto3.client("sqs", **self._options)

    @cached_property
    def ssm(self) -> SSMClient:
        return self._boto3.client("ssm", **self._options)

    @cached_property
    def stepfunctions(self) -> SFNClient:
        return self._boto3.client("stepfunctions", **self._options)

    def look_around(self) -> None:
        """Raise ClientError if the environment is not deployed here: what is not found in another
        account or region says nothing."""
        self.pipes.describe_pipe(Name=self.pipe)

    # -- names (the same in template.yaml) ---------------------------------------------------------

    @cached_property
    def caller(self) -> dict[str, str]:
        """GetCallerIdentity: {Account, Arn, UserId}."""
        identity = self._boto3.client("sts", **self._options).get_caller_identity()
        return {name: identity[name] for name in ("Account", "Arn", "UserId")}

    @property
    def account(self) -> str:
        return self.caller["Account"]

    @property
    def profile_name(self) -> str:
        """The profile in use, whoever chose it; `default` if nobody did."""
        return self.profile or os.environ.get("AWS_PROFILE") or "default"

    @property
    def region_name(self) -> str:
        return str(self.sqs.meta.region_name)

    def queue_url(self, name: str) -> str:
        """URL of a queue of this environment by its name without `-{env}`."""
        return self.sqs.get_queue_url(QueueName=f"{name}-{self.environment}")["QueueUrl"]

    @property
    def routing_table(self) -> str:
        return f"ses-email-routing-{self.environment}"

    @property
    def deliveries_table(self) -> str:
        return f"ses-mail-deliveries-{self.environment}"

    @property
    def bucket(self) -> str:
        return f"ses-mail-storage-{self.account}-{self.environment}"

    @property
    def pipe(self) -> str:
        return f"ses-email-router-{self.environment}"

    @property
    def receipt_rule(self) -> str:
        return f"ses-mail-{self.environment}"

    @property
    def state_machine_arn(self) -> str:
        partition = self.caller["Arn"].split(":")[1]
        return (
            f"arn:{partition}:states:{self.region_name}:{self.account}"
            f":stateMachine:ses-mail-process-email-{self.environment}"
        )

    def execution_arn(self, name: str) -> str:
        return f"{self.state_machine_arn.replace(':stateMachine:', ':execution:')}:{name}"

    @property
    def default_token_parameter(self) -> str:
        return f"/ses-mail/{self.environment}/gmail-token"

    @property
    def mailbox_token_prefix(self) -> str:
        return f"/ses-mail/{self.environment}/gmail-tokens/"

    @property
    def redrive_document(self) -> str:
        return f"SESMail-DLQ-Redrive-{self.environment}"

    @property
    def health_document(self) -> str:
        return f"SESMail-Queue-HealthCheck-{self.environment}"
