"""`Fetch email`: finds the email in the bucket and tells what the workflow decides on."""

import os
from typing import Any

from ses_mail import clients, observe
from ses_mail.fetch import fetch


@observe.task
def handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """{messageId, executionArn, action} → {bucket, key, size, etag, received}."""
    email = fetch(clients.s3(), os.environ["BUCKET"], event["action"])
    observe.logger.info("Email fetched", size=email["size"], received=email["received"])
    observe.count("EmailsFetched")
    return email
