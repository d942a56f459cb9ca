"""`Fetch email`: finds the email in the bucket, and what the workflow decides on."""

import os
from typing import Any

from ses_mail import clients, observe
from ses_mail.fetch import fetch
from ses_mail.payloads import Email, FetcherPayload


@observe.task
def handler(event: FetcherPayload, _context: Any) -> Email:
    """Where the email lies, and how often it was received."""
    email = fetch(clients.s3(), os.environ["BUCKET"], event["action"])
    observe.logger.info("Email fetched", size=email["size"], received=email["received"])
    observe.count("EmailsFetched")
    return email
