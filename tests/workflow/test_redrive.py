"""A dead letter sent back to the input queue: delivered once its cause is mended, and only once."""

import json
from collections.abc import Sequence

import pytest

from .kit import Post, check_letter

QUOTED = '"a\\"b\\\\c@d {% $x %} \'e\'"@example.com'


def test_mended_token(post: Post) -> None:
    (recipient, mailbox), (good, other) = post.forwarded(), post.forwarded()
    post.cloud.google.revoke(mailbox)
    message_id = post.send(recipient, good)
    post.dead_lettered(message_id)
    (letter,) = post.take("GmailForwarderDlq")
    post.cloud.add_mailbox(mailbox)
    post.redrive(letter)
    first, second = post.runs(message_id)
    assert second.status == "SUCCEEDED"
    assert second.name.startswith(f"{message_id}-1-")
    assert set(second.input) == {"mail", "receipt", "redrive"}
    assert second.input["redrive"] == {"attempt": 1, "recipients": [recipient]}
    assert second.ended("delivered") == {recipient}
    assert (post.copies(mailbox), post.copies(other)) == (1, 1)
    # Redriving twice does nothing twice: not at once …
    post.redrive(letter, letter)
    assert [run.name for run in post.runs(message_id)] == [first.name, second.name]
    # … nor under a further attempt's name.
    body = letter.body
    body["redrive"]["attempt"] = 2
    post.queue(body)
    post.cloud.wait_idle()
    assert post.runs(message_id)[2].ended("delivered") == {recipient}
    assert (post.copies(mailbox), post.copies(other)) == (1, 1)
    assert post.take() == []


def test_cause_that_is_not_mended(post: Post) -> None:
    recipient, mailbox, message_id = post.parked()
    letters = post.take("GmailForwarderDlq")
    for attempt in (2, 3):
        post.redrive(*letters)
        run = post.runs(message_id)[attempt - 1]
        assert (run.status, run.error) == ("FAILED", "DeadLettered")
        assert post.is_marked(run)
        (letter,) = post.take("GmailForwarderDlq")
        check_letter(
            letter, run, "GmailTokenError", action="forward-to-gmail", target=mailbox,
            rule=recipient, recipients=[recipient],
        )  # fmt: skip
        assert letter.body["redrive"]["attempt"] == attempt
        letters = [letter]


def test_bounce_that_ses_refused(post: Post) -> None:
    recipients = [post.address("bounce"), post.address("bounce")]
    post.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    before = len(post.cloud.bounces)
    message_id = post.send(*recipients)
    post.dead_lettered(message_id)
    (letter,) = post.take("BouncerDlq")
    post.redrive(letter)
    post.redrive(letter)
    assert [bounce["recipients"] for bounce in post.cloud.bounces[before:]] == [recipients]
    assert [run.status for run in post.runs(message_id)] == ["FAILED", "SUCCEEDED"]


@pytest.mark.parametrize("action", ["typo", "forward-to-gmail", "bounce", "store"])
def test_corrected_rule_applies(post: Post, action: str) -> None:
    mailbox = post.mailbox()
    recipient = post.address("forward-to-gmail", post.mailbox(False))
    message_id = post.send(recipient)
    post.dead_lettered(message_id)
    (letter,) = post.take("GmailForwarderDlq")
    post.cloud.put_rule(recipient, action, mailbox)
    post.redrive(letter)
    run = post.runs(message_id)[1]
    outcome = {
        "typo": "dead-lettered",
        "forward-to-gmail": "delivered",
        "bounce": "bounced",
        "store": "stored",
    }[action]
    assert run.ended(outcome) == {recipient}
    assert post.copies(mailbox) == (1 if action == "forward-to-gmail" else 0)


def test_email_that_is_back(post: Post) -> None:
    recipient, mailbox = post.forwarded()
    notification = post.store(recipient)
    action, s3 = notification["receipt"]["action"], post.cloud.client("s3")
    place = {"Bucket": action["bucketName"], "Key": action["objectKey"]}
    email = s3.get_object(**place)["Body"].read()
    s3.delete_object(**place)
    post.cloud.publish(notification)
    message_id = notification["mail"]["messageId"]
    post.dead_lettered(message_id)
    s3.put_object(**place, Body=email)
    post.redrive(*post.take("InputDlq"))
    assert post.runs(message_id)[1].status == "SUCCEEDED"
    (copy,) = post.cloud.google.messages(mailbox)
    assert copy.raw == f"Delivered-To: {recipient}\r\n".encode() + email


@pytest.mark.parametrize("action", ["forward-to-gmail", "bounce", "typo", "lost"])
def test_quotes_and_backslashes_survive(post: Post, action: str) -> None:
    mailbox = post.mailbox()
    post.cloud.put_rule(QUOTED, "forward-to-gmail" if action == "lost" else action, mailbox)
    if action == "forward-to-gmail":
        post.cloud.google.revoke(mailbox)
    post.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    notification = post.store(QUOTED)
    message_id = notification["mail"]["messageId"]
    place = notification["receipt"]["action"]
    if action == "lost":
        place["objectKey"] += '-"\\'
    post.cloud.publish(notification)
    run = post.dead_lettered(message_id)
    (letter,) = post.take()
    assert letter.failure["recipients"] == letter.body["redrive"]["recipients"] == [QUOTED]
    assert letter.body["receipt"] == run.input["receipt"]
    # Mended, the email is delivered to the same recipient.
    post.cloud.put_rule(QUOTED, "forward-to-gmail", mailbox)
    post.cloud.add_mailbox(mailbox)
    body = letter.body
    body["receipt"]["action"]["objectKey"] = place["objectKey"].removesuffix('-"\\')
    post.queue(body)
    post.cloud.wait_idle()
    (copy,) = post.cloud.google.messages(mailbox)
    assert copy.raw.startswith(f"Delivered-To: {QUOTED}\r\n".encode())


def _again(post: Post, message_id: str, **redrive: object) -> None:
    post.queue({**post.cloud.notification(message_id), "redrive": redrive})
    post.cloud.wait_idle()


def test_force_sends_again(post: Post) -> None:
    (recipient, mailbox), bad = post.forwarded(), post.address("bounce")
    before = len(post.cloud.bounces)
    message_id = post.send(recipient, bad)
    post.delivered(message_id)

    def sent() -> tuple[int, int]:
        return post.copies(mailbox), len(post.cloud.bounces) - before

    assert sent() == (1, 1)
    _again(post, message_id, attempt=1)
    assert sent() == (1, 1)
    _again(post, message_id, force="first")
    assert sent() == (2, 2)
    _again(post, message_id, force="first")
    assert sent() == (2, 2)
    _again(post, message_id, force="first", attempt=2)
    assert sent() == (2, 2)
    _again(post, message_id, force="second", recipients=[recipient])
    assert sent() == (3, 2)


def test_to_a_mailbox_instead_of_the_rules(post: Post) -> None:
    """Failed, it stays on its way there; and nothing that the rules say is done."""
    (recipient, mailbox), bad, other = post.forwarded(), post.address("bounce"), post.mailbox()
    before = len(post.cloud.bounces)
    message_id = post.send(recipient, bad)
    post.delivered(message_id)
    post.cloud.google.revoke(other)
    _again(post, message_id, to=other.upper().replace("@", "+tag@"))
    (letter,) = post.take("GmailForwarderDlq")
    check_letter(
        letter, post.runs(message_id)[1], "GmailTokenError", action="forward-to-gmail",
        target=other, rule="none", recipients=[recipient, bad], redrive={"to": other},
    )  # fmt: skip
    post.cloud.add_mailbox(other)
    post.redrive(letter)
    assert post.runs(message_id)[2].ended("delivered") == {recipient, bad}
    assert (post.copies(mailbox), post.copies(other)) == (1, 1)
    assert len(post.cloud.bounces) - before == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_recipients_in_any_order_and_case_are_one_redrive(post: Post, order: Sequence[int]) -> None:
    (first, mailbox), (second, _) = post.forwarded(), post.forwarded()
    message_id = post.send(first, second)
    post.delivered(message_id)
    recipients = [first.upper(), second]
    _again(post, message_id, recipients=[first, second], force="x")
    _again(post, message_id, recipients=[recipients[i] for i in order], force="x")
    assert len(post.runs(message_id)) == 2
    assert post.copies(mailbox) == 2


def test_hundred_recipients(post: Post) -> None:
    """One copy and one bounce for a hundred recipients; both can fail and be redriven."""
    mailbox = post.mailbox()
    post.cloud.google.revoke(mailbox)
    post.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    forwarded = [post.address("forward-to-gmail", mailbox) for _ in range(80)]
    bounced = [post.address("bounce") for _ in range(20)]
    before = len(post.cloud.bounces)
    message_id = post.send(*forwarded, *bounced)
    run = post.dead_lettered(message_id)
    assert len(run.deliveries) == 2
    letters = post.take()
    recipients = {letter.queue: letter.failure["recipients"] for letter in letters}
    assert recipients == {"GmailForwarderDlq": forwarded, "BouncerDlq": bounced}
    post.cloud.add_mailbox(mailbox)
    post.redrive(*letters)
    (copy,) = post.cloud.google.messages(mailbox)
    assert copy.raw.count(b"Delivered-To: ") == 80
    assert [bounce["recipients"] for bounce in post.cloud.bounces[before:]] == [bounced]


def test_hundred_deliveries_and_the_rest_parked(post: Post) -> None:
    mailboxes = [post.mailbox() for _ in range(103)]
    single = [post.address("forward-to-gmail", mailbox) for mailbox in mailboxes[:99]]
    fan_out = post.address("forward-to-gmail", mailboxes[99:])
    message_id = post.send(*single, fan_out)
    post.cloud.wait_idle(120)
    run = post.dead_lettered(message_id)
    assert len(run.outcomes) == 101
    assert len(run.ended("delivered")) == 100
    assert [post.copies(mailbox) for mailbox in mailboxes] == [1] * 100 + [0] * 3
    (letter,) = post.take("InputDlq")
    check_letter(
        letter, run, "InvalidRoutingRuleError", action="route", rule=fan_out,
        recipients=[fan_out], cause="103 deliveries of one email, of which 100 fit",
    )  # fmt: skip
    post.redrive(letter)
    assert post.runs(message_id)[1].status == "SUCCEEDED"
    assert [post.copies(mailbox) for mailbox in mailboxes] == [1] * 103


def long_addresses(count: int) -> list[str]:
    """Recipients of 104 characters each."""
    return [f"{n:04}".ljust(91, "x") + "@long.example" for n in range(count)]


def test_the_longest_email_can_fail_and_be_redriven(post: Post) -> None:
    recipients, mailbox = long_addresses(700), post.mailbox()
    post.cloud.put_rule("*@long.example", "forward-to-gmail", mailbox)
    post.cloud.google.revoke(mailbox)
    message_id = post.send(*recipients)
    post.dead_lettered(message_id)
    (letter,) = post.take()
    assert letter.failure["recipients"] == recipients
    post.cloud.add_mailbox(mailbox)
    post.redrive(letter)
    assert post.runs(message_id)[1].ended("delivered") == set(recipients)
    assert post.copies(mailbox) == 1


def test_an_email_that_is_too_long_for_a_dead_letter_is_parked_before_it_starts(
    post: Post,
) -> None:
    post.cloud.put_rule("*@long.example", "store")
    recipients = long_addresses(900)
    notification = post.store(post.address("store"))
    notification["receipt"]["recipients"] = recipients
    post.cloud.publish(notification)
    for _ in range(2):
        post.cloud.wait_idle()
        (letter,) = post.take()
        assert letter.queue == "InputDlq"
        assert "send it for some of the recipients at a time" in letter.failure["cause"]
        assert json.loads(letter.body["original"])["receipt"]["recipients"] == recipients
        post.queue(letter.text)
    post.cloud.wait_idle()
    post.take()
    message_id = notification["mail"]["messageId"]
    assert post.runs(message_id) == []
    post.queue({**notification, "redrive": {"recipients": recipients[:300]}})
    post.cloud.wait_idle()
    assert post.run(message_id).ended("stored") == set(recipients[:300])


def test_letters_are_plain_notifications(post: Post) -> None:
    """JSON in a JSON string, as a console may show it, is read too."""
    _recipient, mailbox, _message_id = post.parked()
    (letter,) = post.take()
    post.cloud.add_mailbox(mailbox)
    post.queue(json.dumps(letter.text))
    post.cloud.wait_idle()
    assert post.copies(mailbox) == 1
