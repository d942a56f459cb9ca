"""What is no email ends in the input DLQ with a reason, and the emails around it arrive."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from local.google import Fault

from .kit import Letter, Post, check_letter

# JSON escapes carry what neither SQS nor a terminal would take.
NASTY = "\x00\x01\x1b[31m\r\n\t\ufffe\uffff\ud800 \"quoted\" 'single' \\back\\slash {% $x %} ${Y}"


def changed(notification: dict[str, Any], path: str, value: Any) -> str:
    """The notification as JSON with one field replaced, or left out if the value is `...`."""
    copy = json.loads(json.dumps(notification))
    *parts, last = path.split(".")
    place = copy
    for part in parts:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(copy)


UNPRINTABLE = "is missing or not printable"
# title → (path to change, value, part of the cause)
FIELDS: dict[str, tuple[str, Any, str]] = {
    "no mail": ("mail", ..., "`mail` or `receipt` is missing"),
    "no receipt": ("receipt", ..., "`mail` or `receipt` is missing"),
    "another kind": ("notificationType", "Bounce", "notificationType is 'Bounce'"),
    "no message id": ("mail.messageId", ..., "mail.messageId is missing"),
    "message id of controls": ("mail.messageId", NASTY, f"mail.messageId {UNPRINTABLE}"),
    "message id with a slash": ("mail.messageId", "../x", "is not an SES message id"),
    "no action": ("receipt.action", ..., "receipt.action is not the S3 action"),
    "another action": ("receipt.action.type", "Lambda", "receipt.action is not the S3 action"),
    "no bucket": ("receipt.action.bucketName", ..., "receipt.action.bucketName is missing"),
    "no key": ("receipt.action.objectKey", ..., "receipt.action.objectKey is missing"),
    "key of controls": ("receipt.action.objectKey", NASTY, f"objectKey {UNPRINTABLE}"),
    "no recipients": ("receipt.recipients", [], "receipt.recipients is not a list"),
    "recipient of controls": ("receipt.recipients", [NASTY], f"receipt.recipients {UNPRINTABLE}"),
    "recipients as text": ("receipt.recipients", "a@b.example", "receipt.recipients is not a list"),
    "redrive as text": ("redrive", "again", "redrive is not an object"),
    "attempt 0": ("redrive", {"attempt": 0}, "redrive.attempt 0"),
    "attempt as text": ("redrive", {"attempt": "1"}, "redrive.attempt '1'"),
    "ignoreVerdicts as text": ("redrive", {"ignoreVerdicts": "yes"}, "redrive.ignoreVerdicts"),
    "force as number": ("redrive", {"force": 7}, "redrive.force"),
    "redrive for a stranger": ("redrive", {"recipients": ["x@y.example"]}, "did not get the email"),
}


def wrapped(times: int) -> str:
    message: dict[str, Any] = {}
    for _ in range(times):
        message = {"original": message}
    return json.dumps(message)


BODIES = {
    "not JSON": ("Hello", "not JSON"),
    "half JSON": ('{"mail": ', "not JSON"),
    "a number": ("17", "a JSON int is not a notification"),
    "a list": ("[]", "a JSON list is not a notification"),
    "null": ("null", "a JSON NoneType is not a notification"),
    "S3 event": ('{"Records": [{"eventSource": "aws:s3"}]}', "`mail` or `receipt` is missing"),
    "nothing but controls": (json.dumps({"mail": NASTY}), "`mail` or `receipt` is missing"),
    "kind of controls": (json.dumps({"notificationType": NASTY}), "notificationType is"),
    "endless wrapping": (wrapped(10), "wrapped more than"),
    "deep nesting": ("[" * 100_000, "not JSON"),
}


@dataclass(frozen=True)
class Batch:
    letters: dict[str, Letter]
    around: list[tuple[str, str]]  # (messageId, mailbox) of good emails in between


@pytest.fixture(scope="module")
def batch(post: Post) -> Batch:
    """Every bad message between two good ones, all waiting before the pipe takes the first."""
    recipient, _ = post.forwarded()
    good = post.store(recipient)
    bodies = {title: body for title, (body, _) in BODIES.items()}
    bodies |= {title: changed(good, path, value) for title, (path, value, _) in FIELDS.items()}
    around = []
    emails = [post.forwarded() for _ in range(len(bodies) // 3 + 1)]
    failures = len(post.cloud.pipe.failures)
    post.cloud.pipe.pause()
    for number, body in enumerate(bodies.values()):
        if number % 3 == 0:
            recipient, mailbox = emails[number // 3]
            around.append((post.send(recipient), mailbox))
        post.queue(body)
    post.cloud.pipe.resume()
    post.cloud.wait_idle()
    by_body = {letter.body["original"]: letter for letter in post.take("InputDlq")}
    assert len(post.cloud.pipe.failures) == failures
    return Batch({title: by_body[body] for title, body in bodies.items()}, around)


CAUSES = {title: cause for title, (_, cause) in BODIES.items()} | {
    title: cause for title, (_, _, cause) in FIELDS.items()
}


@pytest.mark.parametrize("title", CAUSES)
def test_bad_message(title: str, batch: Batch) -> None:
    letter = batch.letters[title]
    assert letter.failure == {
        "action": "start",
        "error": "InvalidNotificationError",
        "cause": letter.failure["cause"],
        "at": letter.failure["at"],
    }
    assert CAUSES[title] in letter.failure["cause"]
    assert letter.failure["cause"].isprintable()
    assert letter.attributes == {"Action": "start", "Error": "InvalidNotificationError"}


def test_emails_around_arrive(post: Post, batch: Batch) -> None:
    assert batch.around
    for message_id, mailbox in batch.around:
        assert post.delivered(message_id).attempts["Fetch email"] == 1
        assert post.copies(mailbox) == 1


def test_bad_message_fed_back_ends_there_again(post: Post, batch: Batch) -> None:
    letter = batch.letters["no bucket"]
    post.redrive(letter)
    (again,) = post.take("InputDlq")
    assert again.body["original"] == letter.body["original"]
    assert again.failure["cause"] == letter.failure["cause"]


def test_mended_message_fed_back_is_delivered(post: Post) -> None:
    recipient, mailbox = post.forwarded()
    notification = post.store(recipient)
    post.queue(changed(notification, "receipt.action", ...))
    post.cloud.wait_idle()
    (letter,) = post.take("InputDlq")
    post.queue({**letter.body, "original": json.dumps(notification)})
    post.delivered(notification["mail"]["messageId"])
    assert post.copies(mailbox) == 1


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("bucketName", "somebody-elses", "InvalidNotificationError"),
        ("bucketName", "\"quoted\" 'single' \\ {% $x %} ${Y}", "InvalidNotificationError"),
        ("bucketName", "\\" * 600, "InvalidNotificationError"),
        ("bucketName", '"' * 2000, "InvalidNotificationError"),
        ("objectKey", "emails/nothing-here", "EmailNotFoundError"),
        ("objectKey", "emails/\"quoted\" \\ ☃ 'single'", "EmailNotFoundError"),
    ],
    ids=lambda text: text[:20],
)
def test_email_that_is_not_there(post: Post, field: str, value: str, error: str) -> None:
    (recipient, mailbox), other = post.forwarded(), post.address("bounce")
    notification = post.store(recipient, other)
    action = notification["receipt"]["action"]
    good, action[field] = action[field], value
    post.cloud.publish(notification)
    run = post.dead_lettered(notification["mail"]["messageId"])
    (letter,) = post.take()
    assert letter.queue == "InputDlq"
    check_letter(letter, run, error, action="fetch", recipients=[recipient, other])
    mended = letter.body
    mended["receipt"]["action"][field] = good
    post.queue(mended)
    post.cloud.wait_idle()
    assert post.copies(mailbox) == 1


def test_error_message_full_of_controls(post: Post) -> None:
    recipient, mailbox = post.forwarded()
    rule, (other, other_mailbox) = (
        post.address(NASTY.encode("utf-8", "replace").decode()),
        post.forwarded(),
    )
    post.cloud.google.faults.append(
        Fault(on="start", status=400, reason="invalid", message=NASTY * 50, mailbox=mailbox)
    )
    message_id = post.send(recipient, rule, other)
    run = post.dead_lettered(message_id)
    assert post.copies(other_mailbox) == 1
    letters = {letter.queue: letter for letter in post.take()}
    check_letter(
        letters["GmailForwarderDlq"], run, "GmailRejectedError", action="forward-to-gmail",
        target=mailbox, rule=recipient, recipients=[recipient],
    )  # fmt: skip
    check_letter(
        letters["InputDlq"], run, "InvalidRoutingRuleError", action="route", rule=rule,
        recipients=[rule], cause="unknown action",
    )  # fmt: skip
