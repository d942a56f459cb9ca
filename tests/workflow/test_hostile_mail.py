"""Hostile and odd emails (tests/corpus/hostile.py): each arrives byte for byte, or is refused."""

import smtplib
from dataclasses import dataclass

import pytest

from tests.corpus.hostile import CORPUS, Hostile

from .kit import Post, email


@dataclass(frozen=True)
class Sent:
    message_id: str
    recipients: list[str]
    mailbox: str


def by_smtp(post: Post, raw: bytes, sender: str, recipients: list[str]) -> str:
    """Send as any server would; the messageId is in the answer to DATA."""
    with smtplib.SMTP(*post.cloud.smtp) as client:
        client.helo("partner.example")
        for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{r}>" for r in recipients)):
            code, answer = client.docmd(command)
            if code != 250:
                raise smtplib.SMTPResponseException(code, answer)
        code, answer = client.data(raw)
        if code != 250:
            raise smtplib.SMTPResponseException(code, answer)
    return answer.split()[-1].decode()


@pytest.fixture(scope="module")
def sent(post: Post) -> dict[str, Sent]:
    """The whole corpus, on its way together."""
    sent = {}
    for number, case in enumerate(CORPUS):
        mailbox = post.mailbox()
        recipients = [address.format(f"h{number}") for address in case.recipients]
        for recipient in recipients:
            post.cloud.put_rule(canonical(recipient), "forward-to-gmail", mailbox)
        if case.by_smtp:
            message_id = by_smtp(post, case.raw, case.sender, recipients)
        else:
            message_id = post.send(*recipients, raw=case.raw, sender=case.sender)
        sent[case.name] = Sent(message_id, recipients, mailbox)
    post.cloud.wait_idle(120)
    return sent


def canonical(recipient: str) -> str:
    """As an operator must write it into a rule: lower-case, the domain as an A-label."""
    local, _, domain = recipient.lower().rpartition("@")
    return f"{local}@{domain.replace('bücher', 'xn--bcher-kva')}"


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_arrives_unchanged(case: Hostile, post: Post, sent: dict[str, Sent]) -> None:
    email = sent[case.name]
    run = post.run(email.message_id)
    assert run.status == "SUCCEEDED"
    assert run.ended("stored" if case.stored else "delivered") == set(email.recipients)
    lines = "".join(f"Delivered-To: {recipient}\r\n" for recipient in email.recipients)
    copies = [copy.raw for copy in post.cloud.google.messages(email.mailbox)]
    # Compared first as lengths: nobody wants to read a megabyte of difference.
    assert [len(copy) for copy in copies] == (
        [] if case.stored else [len(lines.encode()) + len(case.raw)]
    )
    assert copies == ([] if case.stored else [lines.encode() + case.raw])


def test_most_of_it_went_through_smtp() -> None:
    assert sum(case.by_smtp for case in CORPUS) > len(CORPUS) / 2
    assert len({case.name for case in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize(
    ("raw", "recipients", "code", "reason"),
    [
        (b"x: y\r\n\r\n", 101, 452, b"too many recipients"),
        (b"x: y\r\n\r\n" + (b"x" * 1022 + b"\r\n") * 40 * 1024, 1, 552, b"Too much mail data"),
    ],
    ids=["101 recipients", "more than 40 MB"],
)
def test_refused_by_ses(post: Post, raw: bytes, recipients: int, code: int, reason: bytes) -> None:
    before = len(post.cloud.executions())
    addresses = [f"many{number}@example.com" for number in range(recipients)]
    with pytest.raises(smtplib.SMTPResponseException) as refused:
        by_smtp(post, raw, "jane@partner.example", addresses)
    assert refused.value.smtp_code == code
    assert isinstance(refused.value.smtp_error, bytes)
    assert reason in refused.value.smtp_error
    assert len(post.cloud.executions()) == before


def test_recipients_that_cannot_be_logged_are_parked(post: Post) -> None:
    """Control characters in an address: nothing that SES would write, but a message may hold it."""
    before = len(post.cloud.executions())
    notification = post.store(post.forwarded()[0], raw=email())
    notification["receipt"]["recipients"] = ["evil\r\nDelivered-To: x@example.com"]
    post.cloud.publish(notification)
    post.cloud.wait_idle()
    (letter,) = post.take("InputDlq")
    assert letter.failure["error"] == "InvalidNotificationError"
    assert "not printable" in letter.failure["cause"]
    assert len(post.cloud.executions()) == before
