"""Whether Google still takes the tokens, and the redrive of mail that was parked for a bad one.

A refresh shows that a token lives, not that it may act for its mailbox: only an import shows that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_auth_httplib2
import httplib2

from ses_mail import clock, delivery_keys, tables
from ses_mail.credentials import StoredToken, google_credentials, stored_tokens
from ses_mail.errors import GmailTemporaryError, GmailTokenError
from ses_mail.google_errors import translated

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_ssm import SSMClient

VALID, INVALID, UNKNOWN = "valid", "invalid", "unknown"

# Seconds for an answer of the token endpoint, which google-auth asks up to three times.
_TIMEOUT = 10
# Seconds after a token became good in which parked mail is redriven: events get lost, and an email
# that was on its way is parked a little later. Without an end, mail that no token helps would be
# redriven every hour.
_WINDOW = 3 * 3600


@dataclass(frozen=True)
class Check:
    """What Google said of a token; error is the code that an operator would search for."""

    parameter: str
    result: str
    error: str = ""
    version: int = 0
    modified_at: str = ""


@dataclass(frozen=True)
class TokenMonitor:
    """Checks the tokens of one environment, and keeps in the deliveries table how each one was."""

    ssm: "SSMClient"
    dynamodb: "DynamoDBClient"
    table: str
    default_parameter: str
    prefix: str

    def checks(self, out_of_time: Callable[[], bool]) -> Iterator[Check]:
        """Of every token; of the default one that is not there, if there is none at all."""
        tokens = stored_tokens(self.ssm, self.default_parameter, self.prefix)
        if not tokens:
            yield Check(self.default_parameter, INVALID, "missing_credentials")
        for token in tokens:
            result, error = (UNKNOWN, "out_of_time") if out_of_time() else ask_google(token)
            yield Check(token.parameter, result, error, token.version, token.modified_at)

    def became_good(self, checks: Sequence[Check]) -> list[str]:
        """Record the checks; parameters whose token is good since less than 3 h."""
        known = [check for check in checks if check.result != UNKNOWN]
        keys = {check.parameter: delivery_keys.token_check(check.parameter) for check in known}
        records = tables.read_all(self.dynamodb, self.table, list(keys.values()))
        before = {record["PK"]: record for record in records}
        now, good = clock.now(), []
        for check in known:
            record = recorded(before.get(keys[check.parameter]["PK"], {}), check, now)
            self.dynamodb.put_item(TableName=self.table, Item=tables.serialize(record))
            if is_newly_good(record, now):
                good.append(check.parameter)
        return good


@dataclass(frozen=True)
class Redrive:
    """Sends mail that was parked for its token back into the input queue, by SSM Automation."""

    ssm: "SSMClient"
    sqs: "SQSClient"
    document: str
    dlq_url: str
    input_queue_url: str

    def start(self) -> str:
        """The automation's id, or empty if nothing is parked."""
        counted = self.sqs.get_queue_attributes(
            QueueUrl=self.dlq_url, AttributeNames=["ApproximateNumberOfMessages"]
        )["Attributes"]
        if int(counted["ApproximateNumberOfMessages"]) == 0:
            return ""
        answer = self.ssm.start_automation_execution(
            DocumentName=self.document,
            Parameters={
                "DLQUrl": [self.dlq_url],
                "SourceQueueUrl": [self.input_queue_url],
                "Error": [GmailTokenError.__name__],
            },
        )
        return answer["AutomationExecutionId"]


def ask_google(token: StoredToken) -> tuple[str, str]:
    """(result, error code) of refreshing the token; never raises, or one odd token would hide the
    others."""
    if token.error:
        return UNKNOWN, token.error
    http = httplib2.Http(timeout=_TIMEOUT)
    try:
        google = google_credentials(token.parameter, token.value, token.mailbox)
        with translated(f"parameter {token.parameter}"):
            google.refresh(google_auth_httplib2.Request(http))
    except GmailTokenError as error:
        return INVALID, error.code
    except GmailTemporaryError as error:
        return UNKNOWN, error.code
    except Exception as error:
        return UNKNOWN, type(error).__name__
    finally:
        http.close()
    return VALID, ""


def recorded(before: Mapping[str, Any], check: Check, now: float) -> tables.Item:
    """The token's item after a check, given the one before, empty if there was none.

    changed_at is when it last became good or bad, or was put again.
    """
    item = {
        **delivery_keys.token_check(check.parameter),
        "entity_type": "TOKEN_CHECK",
        "version": check.version,
        "modified_at": check.modified_at,
        "valid": check.result == VALID,
        "error": check.error,
        "checked_at": clock.iso(now),
    }
    same = all(item[name] == before.get(name) for name in ("version", "modified_at", "valid"))
    return {**item, "changed_at": before["changed_at"] if same else item["checked_at"]}


def is_newly_good(item: Mapping[str, Any], now: float) -> bool:
    """Whether a token's item says that it became good in the last 3 h."""
    changed = clock.parse(item["changed_at"])
    return bool(item["valid"] and changed is not None and now - changed < _WINDOW)
