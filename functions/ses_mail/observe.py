"""Logs, metrics and traces at the edge of every Lambda function (design of the two contract lines).

`Routing decision` {messageId, recipient, action, target, matchedRule, reason} and `Action result`
{messageId, recipients, action, target, result, resultId | error}.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from botocore.exceptions import ClientError

from ses_mail import clock, outcomes
from ses_mail.errors import printable
from ses_mail.routing import Decision

Handler = Callable[[Any, Any], Any]

# An invocation that fails early has nothing to count, and Powertools would say so in every log.
warnings.filterwarnings("ignore", message="No application metrics to publish")

logger = Logger(use_rfc3339=True, log_uncaught_exceptions=False)
metrics = Metrics()
# Patching botocore and httplib2 would put request details, the session URI among them, into traces.
tracer = Tracer(auto_patch=False)


def count(name: str, value: float = 1) -> None:
    """Add to a metric of namespace SESMail/{env}."""
    metrics.add_metric(name, MetricUnit.Count, value)


def email(message_id: str) -> None:
    """Whatever is logged and traced from here on belongs to this email."""
    logger.append_keys(messageId=message_id)
    tracer.put_annotation("messageId", message_id)


@contextlib.contextmanager
def message() -> Iterator[None]:
    """A part of the trace of its own, so that each message of a batch has its own `messageId`.

    X-Ray finds a trace by an annotation of any of its subsegments, and takes 50 annotations a trace
    (AWS, "Using filter expressions" and "X-Ray segment documents").
    """
    with tracer.provider.in_subsegment("## message"):
        yield


def task(handler: Handler) -> Handler:
    """For a task of the state machine, whose event has messageId and executionArn.

    Every log line carries both, the trace is annotated, and an error is logged once.
    """

    @functools.wraps(handler)
    def observed(event: Mapping[str, Any], context: Any) -> Any:
        logger.clear_state()
        email(event["messageId"])
        logger.append_keys(
            executionArn=event["executionArn"], aws_request_id=context.aws_request_id
        )
        try:
            return handler(event, context)
        except Exception as error:
            delivery = event.get("delivery", {})
            logger.error(
                "Action result",
                action=delivery.get("action", context.function_name),
                target=delivery.get("target", ""),
                recipients=delivery.get("recipients", event.get("recipients", [])),
                result=outcomes.FAILED,
                error=error_code(error),
                cause=str(error),
                errorType=type(error).__name__,
            )
            # It becomes the cause of a dead letter, and Lambda does not escape it: SQS refuses
            # U+FFFE there.
            error.args = tuple(printable(a) if isinstance(a, str) else a for a in error.args)
            raise
        finally:
            metrics.flush_metrics()

    return tracer.capture_lambda_handler(observed, capture_response=False, capture_error=False)


def error_code(error: Exception) -> str:
    """What an operator would search for: `invalid_grant`, `MessageRejected`, or the class."""
    if isinstance(error, ClientError):
        return str(error.response["Error"]["Code"])
    return str(getattr(error, "code", "")) or type(error).__name__


def routing_decision(decision: Decision) -> None:
    """The contract line of one recipient."""
    logger.info(
        "Routing decision",
        recipient=decision.recipient,
        action=decision.action,
        target=", ".join(decision.targets),
        matchedRule=decision.matched_rule,
        reason=decision.reason,
    )


def action_result(delivery: Mapping[str, Any], result: str, result_id: str, reason: str) -> None:
    """The contract line of one delivery that ended well."""
    logger.info(
        "Action result",
        recipients=delivery["recipients"],
        action=delivery["action"],
        target=delivery["target"],
        result=result,
        resultId=result_id,
        reason=reason,
    )


def delivery_delay(received_at: float | None) -> None:
    """Age in seconds of an email that has to wait for a further attempt."""
    if received_at is not None:
        metrics.add_metric("DeliveryDelay", MetricUnit.Seconds, clock.now() - received_at)
