"""Parks the emails of executions that died uncaught: by event, and hourly since events may fail."""

import os
from collections.abc import Mapping
from typing import Any

from ses_mail import clients, observe
from ses_mail.observe import logger, metrics, tracer
from ses_mail.payloads import SweeperResult
from ses_mail.sweep import HOURS, Sweeper

_TIME_TO_END = 15_000


class SweepFailedError(Exception):
    """Some executions could not be swept; the error alarm says so, and the next run retries."""


@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: Any) -> SweeperResult:
    """A status change of an execution, or the hourly event, maybe with `hours` → {swept: ARNs}."""
    sweeper = Sweeper(
        stepfunctions=clients.stepfunctions(),
        dynamodb=clients.dynamodb(),
        sqs=clients.sqs(),
        state_machine_arn=os.environ["STATE_MACHINE_ARN"],
        table=os.environ["DELIVERIES_TABLE"],
        input_dlq_url=os.environ["INPUT_DLQ_URL"],
    )
    changed = event.get("detail", {}).get("executionArn")
    dead = [changed] if changed else sweeper.recently_dead(float(event.get("hours", HOURS)))
    swept, failed = [], []
    for arn in sweeper.unmarked(dead):
        if context.get_remaining_time_in_millis() < _TIME_TO_END:
            break  # the next run goes on
        try:
            result = sweeper.sweep(arn)
        except Exception as error:
            # One execution must not take the others with it.
            failed.append(arn)
            code = observe.error_code(error)
            logger.error("Sweep failed", executionArn=arn, error=code, cause=str(error))
            continue
        if result:
            swept.append(arn)
            logger.warning(
                "Execution swept",
                messageId=result.message_id,
                executionArn=arn,
                error=result.error,
            )
            observe.count("Swept")
    if failed:
        raise SweepFailedError(f"{len(failed)} executions could not be swept, first {failed[0]}")
    return {"swept": swept}
