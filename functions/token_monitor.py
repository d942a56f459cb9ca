"""Asks Google about every Gmail token, and redrives what was parked for one that is good again."""

import os
from typing import Any

from ses_mail import clients, monitor_tokens, observe
from ses_mail.monitor_tokens import Redrive, TokenMonitor
from ses_mail.observe import logger, metrics, tracer
from ses_mail.payloads import TokenMonitorResult

_TIME_TO_END = 60_000


class TokenCheckError(Exception):
    """Of some tokens nothing could be learnt; the error alarm says so, and it is tried again."""


@tracer.capture_lambda_handler(capture_response=False, capture_error=False)
@metrics.log_metrics
def handler(_event: Any, context: Any) -> TokenMonitorResult:
    """A changed parameter, or a scheduled event → {checked: {parameter: result}, automation}."""
    ssm, table = clients.ssm(), os.environ["DELIVERIES_TABLE"]
    default, prefix = os.environ["TOKEN_PARAMETER"], os.environ["MAILBOX_TOKEN_PREFIX"]
    monitor = TokenMonitor(ssm, clients.dynamodb(), table, default, prefix)
    checks = list(monitor.checks(lambda: context.get_remaining_time_in_millis() < _TIME_TO_END))
    for check in checks:
        log = logger.info if check.result == monitor_tokens.VALID else logger.warning
        log("Token check", parameter=check.parameter, result=check.result, error=check.error)
        if check.result != monitor_tokens.UNKNOWN:
            observe.count("GmailTokenValid", int(check.result == monitor_tokens.VALID))
    automation = ""
    if good := monitor.became_good(checks):
        dlq, queue = os.environ["GMAIL_FORWARDER_DLQ_URL"], os.environ["INPUT_QUEUE_URL"]
        automation = Redrive(ssm, clients.sqs(), os.environ["REDRIVE_DOCUMENT"], dlq, queue).start()
    if automation:
        logger.info("Token redrive", automationExecutionId=automation, parameters=good)
    if unknown := [check.parameter for check in checks if check.result == monitor_tokens.UNKNOWN]:
        raise TokenCheckError(f"no answer about {len(unknown)} tokens, first {unknown[0]}")
    return {"checked": {c.parameter: c.result for c in checks}, "automation": automation}
