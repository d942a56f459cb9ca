"""Starts one execution per email and set of recipients; the target of the pipe."""

import os
from typing import Any

from ses_mail import clients, observe
from ses_mail.observe import logger, metrics, tracer
from ses_mail.payloads import QueuedMessage, StarterResult
from ses_mail.start import Starter


@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
@metrics.log_metrics
def handler(event: list[QueuedMessage], context: Any) -> StarterResult:
    """A batch of SQS records → {batchItemFailures}: those must come again."""
    starter = Starter(
        stepfunctions=clients.stepfunctions(),
        sqs=clients.sqs(),
        state_machine_arn=os.environ["STATE_MACHINE_ARN"],
        input_dlq_url=os.environ["INPUT_DLQ_URL"],
        identified=observe.email,
    )
    failed: list[str] = []
    for record in event:
        logger.clear_state()
        logger.append_keys(aws_request_id=context.aws_request_id, sqsMessageId=record["messageId"])
        try:
            with observe.message():
                started = starter.start(record["body"])
        except Exception as error:
            # One message must not take the others of its batch with it; it alone comes again.
            logger.exception("Start failed", error=observe.error_code(error))
            observe.count("StartsFailed")
            failed.append(record["messageId"])
            continue
        logger.info(
            "Start result",
            executionArn=started.execution_arn,
            result=started.result,
            reason=started.reason,
        )
        observe.count(f"Starts{started.result.capitalize()}")
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in failed]}
