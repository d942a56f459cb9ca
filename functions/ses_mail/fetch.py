"""Finding an email in the bucket and the facts that the workflow decides on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ses_mail import headers, stored_email
from ses_mail.errors import InvalidNotificationError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def fetch(s3: "S3Client", bucket: str, action: Mapping[str, Any]) -> dict[str, Any]:
    """{bucket, key, size (bytes), etag, received (number of Received lines)}.

    action is `receipt.action` of the notification. Raises InvalidNotificationError if it points
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
