"""What is delivered together, in which order, and what counts as the same email."""

import json
from typing import Any

import pytest

from .kit import Post


def test_order(post: Post) -> None:
    """What is quick goes first: a waiting retry keeps its place in the Map."""
    actions = ["forward-to-gmail", "bounce", "typo", "drop", "store"]
    mailbox = post.mailbox()
    made = {action: post.address(action, mailbox) for action in actions}
    run = post.dead_lettered(post.send(*made.values()))
    order = ["store", "drop", "park", "bounce", "forward-to-gmail"]
    assert [delivery["action"] for delivery in run.deliveries] == order
    assert [outcome["action"] for outcome in run.outcomes] == order
    outcomes = ["stored", "dropped", "dead-lettered", "bounced", "delivered"]
    assert [outcome["outcome"] for outcome in run.outcomes] == outcomes
    assert [o["recipients"] for o in run.outcomes] == [
        [made[action]] for action in reversed(actions)
    ]


def test_one_copy_per_mailbox_and_one_bounce(post: Post) -> None:
    mailbox, other = post.mailbox(), post.mailbox()
    tagged = mailbox.upper().replace("@", "+news@")
    aliases = [
        post.address("forward-to-gmail", mailbox),
        post.address("forward-to-gmail", tagged),
        post.address("forward-to-gmail", [other, mailbox]),
    ]
    bounced = [post.address("bounce"), post.address("bounce")]
    before = len(post.cloud.bounces)
    post.delivered(post.send(*aliases, *bounced))
    (copy,) = post.cloud.google.messages(mailbox)
    lines = "".join(f"Delivered-To: {alias}\r\n" for alias in aliases)
    assert copy.raw.startswith(lines.encode())
    assert post.copies(other) == 1
    assert [bounce["recipients"] for bounce in post.cloud.bounces[before:]] == [bounced]


def test_one_recipient_takes_eight_transitions(post: Post) -> None:
    recipient, _ = post.forwarded()
    assert len(post.delivered(post.send(recipient)).entered) == 8


def test_no_rule_is_stored(post: Post) -> None:
    stranger = post.sender()
    before = len(post.cloud.bounces)
    run = post.delivered(post.send(stranger))
    assert run.ended("stored") == {stranger}
    assert run.deliveries[0]["matchedRule"] == "none"
    assert len(post.cloud.bounces) == before


def test_two_notifications_with_different_recipients(post: Post) -> None:
    """SES sends one for each receipt rule that matches, under one messageId."""
    (first, one), (second, two), (third, three) = (post.forwarded() for _ in range(3))
    notification = post.store(first)
    message_id = notification["mail"]["messageId"]
    for recipients in ([first], [second], [second, first, third], [second]):
        notification["receipt"]["recipients"] = recipients
        post.cloud.publish(notification)
        post.cloud.wait_idle()
    runs = post.runs(message_id)
    assert [run.status for run in runs] == ["SUCCEEDED"] * 3
    assert runs[0].name == message_id
    assert all(run.name.startswith(f"{message_id}-0-") for run in runs[1:])
    assert [post.copies(mailbox) for mailbox in (one, two, three)] == [1, 1, 1]


@pytest.mark.parametrize("wrapped", ["raw", "SNS envelope", "JSON in a string"])
def test_duplicate(post: Post, wrapped: str) -> None:
    (recipient, mailbox), bad = post.forwarded(), post.address("bounce")
    before = len(post.cloud.bounces)
    message_id = post.send(recipient, bad)
    text = json.dumps(post.cloud.notification(message_id))
    again = {
        "raw": text,
        "SNS envelope": json.dumps({"Type": "Notification", "Message": text}),
        "JSON in a string": json.dumps(text),
    }[wrapped]
    for _ in range(3):
        post.queue(again)
    post.delivered(message_id)
    post.queue(again)
    post.delivered(message_id)
    assert post.copies(mailbox) == 1
    assert len(post.cloud.bounces) == before + 1


def test_sns_envelope_is_read(post: Post) -> None:
    """What SNS could not deliver lies in the input DLQ in SNS's own wrapping."""
    recipient, mailbox = post.forwarded()
    notification = post.store(recipient)
    envelope = {
        "Type": "Notification",
        "MessageId": "8a7e5a9c-0000-5555-8888-0f1e2d3c4b5a",
        "TopicArn": post.cloud.resource("ProcessingTopic"),
        "Subject": "Amazon SES Email Receipt Notification",
        "Message": json.dumps(notification),
        "Timestamp": "2026-11-24T10:00:00.000Z",
    }
    post.queue(envelope)
    post.delivered(notification["mail"]["messageId"])
    assert post.copies(mailbox) == 1


@pytest.mark.parametrize("receipt", [{}, {"recipients": ["recipient@example.com"]}], ids=str)
def test_setup_notification_is_ignored(post: Post, receipt: dict[str, Any]) -> None:
    before = len(post.cloud.executions())
    post.cloud.publish(
        {
            "notificationType": "Received",
            "mail": {"messageId": "AMAZON_SES_SETUP_NOTIFICATION", "source": "ses@amazon.com"},
            "receipt": receipt,
        }
    )
    post.cloud.wait_idle()
    assert len(post.cloud.executions()) == before
    assert post.take() == []
