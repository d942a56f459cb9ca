"""What AWS and its library refuse, in one sentence: where it was asked, and what to give."""

from __future__ import annotations

from contextlib import suppress

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from .session import Session

# By service: a queue, table, pipe, bucket, state machine or document of ours that is not there.
_ABSENT = {
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
    "ResourceNotFoundException",
    "NotFoundException",
    "NoSuchBucket",
    "StateMachineDoesNotExist",
    "AutomationDefinitionNotFoundException",
    "InvalidDocument",
}
# IAM User Guide, "Troubleshoot IAM"; S3 and SQS have words of their own.
_NOT_SIGNED_IN = {
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "AuthFailure",
}


def code_of(error: ClientError) -> str:
    """AWS's name of the error."""
    return str(error.response["Error"].get("Code", ""))


def is_denied(error: ClientError) -> bool:
    """Whether somebody else could have done it."""
    return code_of(error).startswith(
        ("AccessDenied", "UnauthorizedOperation", "AuthorizationError")
    )


def explained(error: ClientError | BotoCoreError, session: Session) -> str:
    """The error for the operator; what needs no other option is said in AWS's own words."""
    if isinstance(error, ClientError):
        return _answered(error, session)
    profile = session.profile_name
    if isinstance(error, ProfileNotFound):
        return (
            f"There is no profile {profile} in the AWS configuration: give another --profile "
            "(aws configure list-profiles lists them)"
        )
    if isinstance(error, NoRegionError):
        return "No AWS region is chosen: give --region, or set AWS_REGION"
    if isinstance(error, InvalidRegionError):
        return f"{error.kwargs['region_name']!r} is not the name of an AWS region: give --region"
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"Profile {profile} has no AWS credentials: give --profile, or set AWS_PROFILE"
    if isinstance(error, SSOError | TokenRetrievalError | CredentialRetrievalError):
        return f"The credentials of profile {profile} could not be had: sign in again ({error})"
    if isinstance(error, NoConnectionError | HTTPClientError):
        where = error.kwargs.get("endpoint_url", "AWS")
        wrong = "--endpoint-url" if session.endpoint_url else f"--region {session.region_name}"
        return (
            f"No answer from {where} ({type(error).__name__}): is the network there, and is "
            f"{wrong} right?"
        )
    return str(error)


def _answered(error: ClientError, session: Session) -> str:
    code, message = code_of(error), str(error.response["Error"].get("Message", "no reason given"))
    if code in _ABSENT:
        return (
            f"Environment {session.environment} is not, or not wholly, deployed in region "
            f"{session.region_name} of account {_account(session)} ({error.operation_name}: "
            f"{message.rstrip('.')}): give --env, --region or --profile of the one that you mean"
        )
    if code in _NOT_SIGNED_IN:
        return (
            f"AWS does not accept the credentials of profile {session.profile_name} ({code}): sign "
            "in again, or give another --profile"
        )
    if is_denied(error):
        return (
            f"Profile {session.profile_name} may not do this in account {_account(session)}: give "
            f"the --profile of somebody who may ({error.operation_name}: {message.rstrip('.')})"
        )
    return str(error)


def _account(session: Session) -> str:
    with suppress(ClientError, BotoCoreError):
        return session.account
    return "unknown"
