"""Parks the emails of executions that died uncaught: by event, and hourly since events may fail."""

import os
from typing import Any

from ses_mail import clients, observe
from ses_mail.observe import logger, metrics, tracer
from ses_mail.sweep import Sweeper, Swept

_TIME_TO_END = 15_000


class SweepFailedError(Exception):
    """Some executions could not be swept; Lambda's error alarm tells, and the next run retries."""


@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
@metrics.log_metrics
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """A status change of an execution, or a scheduled event → {swept: [execution ARNs]}."""
    sweeper = Sweeper(
        clients.stepfunctions(),
        clients.dynamodb(),
        clients.sqs(),
        os.environ["STATE_MACHINE_ARN"],
        os.environ["DELIVERIES_TABLE"],
        os.environ["INPUT_DLQ_URL"],
    )
    arn = event.get("detail", {}).get("executionArn")
    arns = [arn] if arn else sweeper.recently_dead()
    swept, failed = [], []
    for result in sweeper.sweep(
        arns, lambda: context.get_remaining_time_in_millis() < _TIME_TO_END
    ):
        if isinstance(result, Swept):
            swept.append(result.execution_arn)
            logger.warning(
                "Execution swept",
                messageId=result.message_id,
                executionArn=result.execution_arn,
                error=result.error,
            )
            observe.count("Swept")
        else:
            failed.append(result[0])
            arn, error = result
            code = observe.error_code(error)
            logger.error("Sweep failed", executionArn=arn, error=code, cause=str(error))
    if failed:
        raise SweepFailedError(f"{len(failed)} executions could not be swept, first {failed[0]}")
    return {"swept": swept}
