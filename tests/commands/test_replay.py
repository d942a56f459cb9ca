"""`sesmail replay`: once more through the workflow, and never twice by mistake."""

import contextlib
import itertools

import pytest
from ses_mail import clock

from local.google import Fault
from tests.workflow.kit import Post, email

from .conftest import Sesmail


def test_a_delivered_email_is_sent_again_by_force_alone(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    message_id = post.send(recipient)
    post.delivered(message_id)
    assert "add --yes" in sesmail(f"replay {message_id}", code=2).err
    answer = sesmail(f"replay {message_id} --yes --wait --json").json
    assert "nothing will be sent again" in answer["plan"][0]["effect"]
    assert list(answer["ends"].values()) == ["SUCCEEDED"]
    assert post.copies(mailbox) == 1
    answer = sesmail(f"replay {message_id} --force --yes --wait --json").json
    assert answer["plan"][0]["effect"] == "is delivered once more"
    assert post.copies(mailbox) == 2
    assert [run.name for run in post.runs(message_id)][2] == answer["executions"][0]
    assert [run.input.get("redrive", {}).get("attempt", 0) for run in post.runs(message_id)] == [
        0,
        1,
        2,
    ]


def test_a_virus_is_released_by_ignoring_the_verdict_alone(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    message_id = post.send(recipient, verdicts={"virus": "FAIL"})
    post.delivered(message_id)
    assert "--ignore-verdicts" in sesmail(f"replay {message_id} --yes", code=2).err
    assert len(post.runs(message_id)) == 1
    sesmail(f"replay {message_id} --ignore-verdicts --yes --wait")
    (copy,) = post.cloud.google.messages(mailbox)
    assert set(copy.labels) == {"INBOX", "UNREAD"}


def test_releasing_a_virus_asks_with_the_word_virus(post: Post, sesmail: Sesmail) -> None:
    message_id = post.send(post.forwarded()[0], verdicts={"virus": "FAIL"})
    post.delivered(message_id)
    asked = sesmail(f"replay {message_id} --ignore-verdicts", code=2).err
    assert "SES found a virus in this email, and it will be delivered with it. Replay" in asked
    harmless = post.send(post.address("store"))
    post.delivered(harmless)
    assert "virus" not in sesmail(f"replay {harmless}", code=2).err


PREVIEWED = list(
    itertools.product(
        ("PASS", "FAIL", "GRAY", None), ("PASS", "FAIL"), ("none", "quarantine", "reject", None)
    )
)


def test_the_preview_puts_into_the_spam_folder_what_the_state_machine_does(
    post: Post, sesmail: Sesmail
) -> None:
    """cli/verdicts.py says it in other words than the state machine: they must mean the same."""
    stored = []
    for _ in PREVIEWED:
        recipient, mailbox = post.forwarded()
        stored.append((mailbox, post.store(recipient)))
    wanted: dict[str, tuple[str, str]] = {}
    for (spam, dmarc, policy), (mailbox, notification) in zip(PREVIEWED, stored, strict=True):
        receipt = notification["receipt"]
        receipt["spamVerdict"], receipt["dmarcVerdict"] = {"status": spam}, {"status": dmarc}
        receipt["dmarcPolicy"] = policy
        for name in [n for n, v in receipt.items() if v in (None, {"status": None})]:
            del receipt[name]
        post.cloud.publish(notification)
        wanted[notification["mail"]["messageId"]] = mailbox, f"{spam} {dmarc} {policy}"
    post.cloud.wait_idle(120)
    spams = 0
    for message_id, (mailbox, verdicts) in wanted.items():
        (copy,) = post.cloud.google.messages(mailbox)
        replayed = sesmail(f"replay {message_id} --force --yes --json").json
        previewed = "into the spam folder" in replayed["plan"][0]["effect"]
        assert previewed == ("SPAM" in copy.labels), verdicts
        spams += previewed
    assert 0 < spams < len(wanted)


def test_the_preview_says_that_there_is_no_token(post: Post, sesmail: Sesmail) -> None:
    message_id = post.send(post.address("store"))
    post.delivered(message_id)
    ssm, name = post.cloud.client("ssm"), "/ses-mail/test/gmail-token"
    with contextlib.suppress(ssm.exceptions.ParameterNotFound):
        ssm.delete_parameter(Name=name)
    ran = sesmail(f"replay {message_id} --to nobody@tokenless.example", code=2)
    assert "goes to the forwarder's dead-letter queue: no credentials for" in ran.out
    assert "sesmail token set --mailbox nobody@tokenless.example --file token.json" in ran.out


def test_the_preview_says_that_it_is_still_being_tried(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="start", status=429, times=1000, mailbox=mailbox))
    message_id = post.send(recipient)
    post.until(lambda: bool(post.runs(message_id) and post.run(message_id).errors))
    ran = sesmail(f"replay {message_id}", code=2)
    assert f"{message_id} still tries to deliver it: one of both will" in ran.out
    assert "is delivered once more" in sesmail(f"replay {message_id} --force", code=2).out
    post.cloud.google.faults.clear()


def test_the_preview_of_a_bounce_that_is_too_late(
    post: Post, sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = post.send(post.address("store"))
    post.delivered(message_id)
    (recipient,) = post.run(message_id).input["receipt"]["recipients"]
    post.cloud.put_rule(recipient, "bounce")
    assert "is bounced, if that hurts nobody" in sesmail(f"replay {message_id}", code=2).out
    later = clock.now() + 1000 * 86400  # the cloud's clock is ahead of this process's
    monkeypatch.setattr(clock, "now", lambda: later)
    assert "SES refuses that after 24 hours" in sesmail(f"replay {message_id}", code=2).out


def test_to_another_mailbox(post: Post, sesmail: Sesmail) -> None:
    """The rules stay as they are, and are not obeyed."""
    (recipient, mailbox), bounced, other = (
        post.forwarded(),
        post.address("bounce"),
        post.mailbox(),
    )
    bounces = len(post.cloud.bounces)
    message_id = post.send(recipient, bounced)
    post.delivered(message_id)
    answer = sesmail(f"replay {message_id} --to {other} --yes --wait --json").json
    assert [(d["target"], d["matched_rule"]) for d in answer["plan"]] == [(other, "none")]
    assert (post.copies(mailbox), post.copies(other)) == (1, 1)
    assert len(post.cloud.bounces) == bounces + 1
    assert f"delivered to {other}" in sesmail(f"trace {message_id}").out


def test_one_recipient_under_a_corrected_rule(post: Post, sesmail: Sesmail) -> None:
    first, second = post.address("store"), post.address("store")
    message_id = post.send(first, second)
    post.delivered(message_id)
    mailbox = post.mailbox()
    post.cloud.put_rule(second, "forward-to-gmail", mailbox)
    sesmail(f"replay {message_id} --recipient {second.upper()} --yes --wait")
    run = post.runs(message_id)[1]
    assert run.ended("delivered") == {second}
    assert run.input["redrive"]["recipients"] == [second]
    (copy,) = post.cloud.google.messages(mailbox)
    assert copy.raw.startswith(f"Delivered-To: {second}\r\n".encode())


def test_a_replay_overtakes_the_letter_that_waits(post: Post, sesmail: Sesmail) -> None:
    _recipient, mailbox, message_id = post.parked()
    previewed = sesmail(f"replay {message_id}", code=2).out
    assert "is delivered; last time it failed with GmailTokenError" in previewed
    post.cloud.add_mailbox(mailbox)
    sesmail(f"replay {message_id} --yes --wait")
    assert post.copies(mailbox) == 1
    traced = sesmail(f"trace {message_id}").out
    assert "delivered to" in traced
    assert "A letter of an earlier attempt still waits" in traced
    sesmail(f"dlq redrive forwarder --message-id {message_id}")
    post.cloud.wait_idle()
    assert post.copies(mailbox) == 1


def test_a_replay_that_fails_says_so(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    message_id = post.send(recipient)
    post.delivered(message_id)
    post.cloud.google.revoke(mailbox)
    ran = sesmail(f"replay {message_id} --force --yes --wait", code=1)
    assert f"sesmail trace {message_id}" in ran.err
    assert post.copies(mailbox) == 1


def test_a_paused_pipe_is_not_waited_for(post: Post, sesmail: Sesmail) -> None:
    recipient, _ = post.forwarded()
    message_id = post.send(recipient)
    post.delivered(message_id)
    post.cloud.pipe.pause()
    ran = sesmail(f"replay {message_id} --yes --wait")
    assert "sesmail resume" in ran.err
    assert len(post.runs(message_id)) == 1


def test_without_an_execution_the_recipient_must_be_named(post: Post, sesmail: Sesmail) -> None:
    """As after 90 days, when Step Functions has forgotten it; SES's headers tell the virus."""
    recipient, mailbox = post.forwarded()
    clean = post.store(recipient)["mail"]["messageId"]
    infected = post.store(recipient, raw=email(headers="X-SES-Virus-Verdict: FAIL\r\n"))["mail"][
        "messageId"
    ]
    assert "--recipient" in sesmail(f"replay {clean} --yes", code=2).err
    ran = sesmail(f"replay {clean} --recipient {recipient} --yes --wait")
    assert "as you give them" in ran.err
    assert post.copies(mailbox) == 1
    ran = sesmail(f"replay {infected} --recipient {recipient} --yes", code=2)
    assert "--ignore-verdicts" in ran.err


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ("--recipient stranger@example.com", 2, "did not get this email"),
        ("--to nowhere", 2, "is not an address"),
    ],
)
def test_what_is_refused(post: Post, sesmail: Sesmail, options: str, code: int, text: str) -> None:
    message_id = post.send(post.address("store"))
    post.delivered(message_id)
    assert text in sesmail(f"replay {message_id} {options} --yes", code=code).err
    assert len(post.runs(message_id)) == 1


def test_what_cannot_be_replayed(post: Post, sesmail: Sesmail) -> None:
    assert "Nothing is known" in sesmail("replay nosuchemail --yes", code=3).err
    loop = post.send(post.address("store"), raw=email(received=26))
    post.delivered(loop)
    assert "a loop" in sesmail(f"replay {loop} --ignore-verdicts --yes", code=2).err
    gone = post.send(post.address("store"))
    post.delivered(gone)
    action = post.cloud.notification(gone)["receipt"]["action"]
    post.cloud.client("s3").delete_object(Bucket=action["bucketName"], Key=action["objectKey"])
    assert "is gone" in sesmail(f"replay {gone} --yes", code=3).err
