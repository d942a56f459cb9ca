"""Finding an email in the bucket and the facts that the workflow decides on."""

from typing import TYPE_CHECKING

from ses_mail import headers, stored_email
from ses_mail.errors import InvalidNotificationError
from ses_mail.payloads import Email, S3Action

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def fetch(s3: "S3Client", bucket: str, action: S3Action) -> Email:
    """Where the email lies, as S3 says, and its number of Received lines.

    Raises InvalidNotificationError if it points
    outside our bucket, EmailNotFoundError if nothing lies there.
    """
    if action["bucketName"] != bucket:
        raise InvalidNotificationError(
            f"the email lies in bucket {action['bucketName']}, this stack's is {bucket}"
        )
    email, fields = stored_email.find(s3, bucket, action["objectKey"])
    return {
        "bucket": email.bucket,
        "key": email.key,
        "size": email.size,
        "etag": email.etag,
        "received": headers.received_count(fields),
    }
