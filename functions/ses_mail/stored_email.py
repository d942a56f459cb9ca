"""Emails in the bucket: found, their headers read, and their bytes in ranges."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from ses_mail import headers
from ses_mail.errors import EmailNotFoundError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# More headers than any mail system passes on; what lies behind is not looked at.
_HEADERS_LENGTH = 2 * 1024 * 1024
_PIECE = 64 * 1024


@dataclass(frozen=True)
class StoredEmail:
    """Where an email lies and what exactly: size in bytes, and the ETag that its bytes had."""

    bucket: str
    key: str
    size: int
    etag: str


def find(s3: "S3Client", bucket: str, key: str) -> tuple[StoredEmail, headers.Headers]:
    """The email and its headers, in one request that stops reading behind the headers.

    Raises EmailNotFoundError; without s3:ListBucket a missing key would be a 403 instead.
    """
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
    except s3.exceptions.NoSuchKey:
        raise EmailNotFoundError(f"no object {key} in bucket {bucket}") from None
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            raise EmailNotFoundError(f"no bucket {bucket}") from None
        raise
    start = bytearray()
    body = answer["Body"]
    try:
        for piece in body.iter_chunks(_PIECE):
            start += piece
            # Over the seam too: a blank line may lie in two pieces.
            found = headers.BLANK_LINE.search(start, max(0, len(start) - len(piece) - 3))
            if found or len(start) > _HEADERS_LENGTH:
                break
    finally:
        body.close()
    email = StoredEmail(bucket, key, answer["ContentLength"], answer["ETag"])
    return email, headers.parse(headers.block_of(bytes(start)))


def read_range(s3: "S3Client", email: StoredEmail, begin: int, length: int) -> bytes:
    """The bytes [begin, begin+length) of just that object, fewer at its end."""
    length = min(length, email.size - begin)
    if length <= 0:
        return b""
    answer = s3.get_object(
        Bucket=email.bucket,
        Key=email.key,
        IfMatch=email.etag,
        Range=f"bytes={begin}-{begin + length - 1}",
    )
    return answer["Body"].read()
