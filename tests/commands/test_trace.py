"""`sesmail trace`: where an email is now, in every way in which it may be somewhere."""

import json
import time
from typing import Any

import pytest

from cli.output import when
from local.google import Fault
from tests.workflow.kit import Post, email

from .conftest import Sesmail


def where(traced: dict[str, Any], recipient: str) -> tuple[str, str]:
    (place,) = (p for p in traced["where"] if recipient in p["recipients"])
    return place["state"], place["text"]


def test_every_outcome_has_its_place(post: Post, sesmail: Sesmail) -> None:
    (good, mailbox), (bad, broken) = post.forwarded(), post.forwarded()
    bounced, stored, typo = (post.address(action) for action in ("bounce", "store", "typo"))
    post.cloud.google.revoke(broken)
    recipients = (good, bad, bounced, stored, typo, "nobody@unrouted.example")
    message_id = post.send(*recipients)
    post.cloud.wait_idle(120)
    traced = sesmail(f"trace {message_id} --json").json
    assert where(traced, good)[0] == "delivered"
    assert f"delivered to {mailbox} at " in where(traced, good)[1]
    assert where(traced, bad) == (
        "dead-lettered",
        "waits in ses-gmail-forwarder-dlq-test because of GmailTokenError. Once that is fixed: "
        "sesmail dlq redrive forwarder --error GmailTokenError",
    )
    assert "bounced to zoe" in where(traced, bounced)[1]
    assert where(traced, stored) == ("stored", f"stored only: rule {stored} says so")
    assert where(traced, typo)[0] == "dead-lettered"
    assert "sesmail dlq redrive input --error InvalidRoutingRuleError" in where(traced, typo)[1]
    assert where(traced, "nobody@unrouted.example") == ("stored", "stored only: no rule")
    (execution,) = traced["executions"]
    assert (execution["status"], execution["error"]) == ("FAILED", "DeadLettered")
    assert execution["states"][:3] == ["Fetch email", "Safe to deliver?", "Look up routes"]
    assert {r for d in execution["deliveries"] for r in d["recipients"]} == set(recipients)
    (failed,) = (d for d in execution["deliveries"] if d["target"] == broken)
    assert "invalid_grant" in failed["cause"]
    assert failed["attempts"] >= 1
    assert failed["matched_rule"] == bad
    assert {r["delivery"].split("#")[0] for r in traced["records"]} == {"FORWARD", "BOUNCE"}
    assert traced["stored"]["size"] > 0
    assert len(traced["dead_letters"]) == 2
    # Looking takes nothing away, and an execution's ARN or name does as well.
    for given in (execution["arn"], execution["name"]):
        assert len(sesmail(f"trace {given} --json").json["dead_letters"]) == 2
    shown = sesmail(f"trace {message_id}").out
    assert "GmailTokenError" in shown
    assert "Forward to Gmail" not in shown
    shown = sesmail(f"trace {message_id} -v").out
    assert "Forward to Gmail" in shown
    assert "FORWARD#" in shown
    assert "invalid_grant" in shown


def test_no_session_and_no_token_is_shown(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="chunk", status=503, times=1000, mailbox=mailbox))
    message_id = post.send(recipient)
    key = {"PK": {"S": f"EMAIL#{message_id}"}, "SK": {"S": f"FORWARD#{mailbox}"}}
    table = post.cloud.resource("DeliveriesTable")

    def record() -> dict[str, Any]:
        found = post.cloud.client("dynamodb").get_item(TableName=table, Key=key)
        item: dict[str, Any] = found.get("Item", {})
        return item

    post.until(lambda: "upload" in record())
    secret = record()["upload"]["M"]["session"]["S"]
    for line in (f"trace {message_id}", f"trace {message_id} --json"):
        ran = sesmail(line)
        assert secret not in ran.out + ran.err
        assert "lease_token" not in ran.out
    post.cloud.google.faults.clear()


def test_an_email_that_is_retried(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="start", status=429, times=1000, mailbox=mailbox))
    message_id = post.send(recipient)

    def waits() -> bool:
        (run,) = post.runs(message_id) or [None]
        return bool(run and len(run.errors) > 8)

    post.until(waits)
    # It may be between two attempts, or in one.
    for _ in range(100):
        state, text = where(sesmail(f"trace {message_id} --json").json, recipient)
        if state == "retrying":
            break
        assert state == "under-way"
        time.sleep(0.1)
    assert "of Forward to Gmail failed with GmailTemporaryError" in text
    assert "; next attempt by " in text
    post.cloud.google.faults.clear()


def test_a_letter_that_was_sent_back_waits_in_the_input_queue(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox, message_id = post.parked()
    post.cloud.add_mailbox(mailbox)
    post.cloud.pipe.pause()
    sesmail(f"dlq redrive forwarder --message-id {message_id}")
    traced = sesmail(f"trace {message_id} --json").json
    assert where(traced, recipient) == (
        "queued",
        "waits in the input queue: the pipe is stopped. Start it: sesmail resume",
    )
    post.cloud.pipe.resume()
    post.cloud.wait_idle()
    traced = sesmail(f"trace {message_id} --json").json
    assert where(traced, recipient)[0] == "delivered"
    assert [e["redrive"].get("attempt", 0) for e in traced["executions"]] == [0, 1]


def test_a_redrive_that_left_no_record_is_found_in_the_list(post: Post, sesmail: Sesmail) -> None:
    recipient, _mailbox, message_id = post.parked()
    post.cloud.put_rule(recipient, "store")
    sesmail(f"dlq redrive forwarder --message-id {message_id}")
    post.cloud.wait_idle()
    traced = sesmail(f"trace {message_id} --json").json
    assert where(traced, recipient)[0] == "stored"
    assert len(traced["executions"]) == 2


@pytest.mark.parametrize(
    ("verdict", "state", "text"),
    [
        ("virus", "dropped", "--ignore-verdicts"),
        ("spam", "delivered", "in the spam folder (SES's spam verdict is FAIL) at "),
    ],
)
def test_verdicts(post: Post, sesmail: Sesmail, verdict: str, state: str, text: str) -> None:
    recipient, _ = post.forwarded()
    message_id = post.send(recipient, verdicts={verdict: "FAIL"})
    post.delivered(message_id)
    found = where(sesmail(f"trace {message_id} --json").json, recipient)
    assert found[0] == state
    assert text in found[1]


def test_what_the_email_is_and_what_ses_found(post: Post, sesmail: Sesmail) -> None:
    recipient, _ = post.forwarded()
    raw = (
        b"From: =?utf-8?q?Zo=C3=AB?= <zoe@x.example>\r\n"
        b"Subject: =?utf-8?q?\x1b[2JGr=C3=BC?=\r\n\r\nHi\r\n"
    )
    verdicts = {"dmarc": "FAIL", "spf": "FAIL", "dkim": "PASS"}
    message_id = post.send(recipient, raw=raw, verdicts=verdicts, dmarc_policy="quarantine")
    post.delivered(message_id)
    traced = sesmail(f"trace {message_id} --json").json
    assert traced["from"] == "Zoë <zoe@x.example>"
    assert traced["subject"].endswith("Grü")
    assert traced["size"] == traced["stored"]["size"]
    assert traced["verdicts"] | verdicts == traced["verdicts"]
    assert set(traced["verdicts"]) == {"spam", "virus", "spf", "dkim", "dmarc"}
    why = "DMARC is FAIL, and the sender's domain asks for quarantine"
    assert traced["why_spam"] == why
    assert f"in the spam folder ({why})" in where(traced, recipient)[1]
    shown = sesmail(f"trace {message_id}").out
    assert "from\tZoë <zoe@x.example>\n" in shown
    assert "SPF FAIL, DKIM PASS, DMARC FAIL (policy quarantine)" in shown
    assert f"size\t{traced['size']} bytes\n" in shown
    assert "\x1b" not in shown


def test_nothing_logs_from_and_subject(post: Post, sesmail: Sesmail) -> None:
    """They are shown to whoever asks, and stay out of every log group."""
    message_id = post.send(post.forwarded()[0], raw=email(headers="Subject: canary4711\r\n"))
    post.delivered(message_id)
    assert "canary4711" in sesmail(f"trace {message_id} -v").out
    logged = [post.cloud.logs(name) for name in ("starter", "fetcher", "router", "gmail-forwarder")]
    assert all(logged)
    assert "canary4711" not in json.dumps(logged)


def test_what_was_delivered_stays_in_the_headline(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    message_id = post.send(recipient)
    post.delivered(message_id)
    other = post.mailbox()
    post.cloud.google.revoke(other)
    sesmail(f"replay {message_id} --to {other} --yes --wait", code=1)
    traced = sesmail(f"trace {message_id} --json").json
    assert [(p["state"], p["recipients"]) for p in traced["where"]] == [
        ("delivered", [recipient]),
        ("dead-lettered", [recipient]),
    ]
    assert f"delivered to {mailbox} at " in traced["where"][0]["text"]
    # Once the same is delivered again, that is what counts.
    post.take()
    sesmail(f"replay {message_id} --force --yes --wait")
    traced = sesmail(f"trace {message_id} --json").json
    assert len(traced["where"]) == 1
    assert [e["redrive"].get("attempt", 0) for e in traced["executions"]] == [0, 1, 2]
    shown = sesmail(f"trace {message_id}").out
    assert shown.index("status\tSUCCEEDED") < shown.index("status\tFAILED"), "newest last"


def test_an_email_that_has_only_begun_its_way(post: Post, sesmail: Sesmail) -> None:
    recipient, _ = post.forwarded()
    post.cloud.pipe.pause()
    message_id = post.send(recipient)
    traced = sesmail(f"trace {message_id} --json").json
    assert where(traced, recipient)[0] == "queued"
    assert traced["executions"] == []


def test_an_unknown_email(post: Post, sesmail: Sesmail) -> None:
    ran = sesmail("trace nosuchemail --json", code=3)
    assert "kept for 90 days" in ran.json["error"]
    assert "s3://ses-mail-storage-" in ran.err


def test_an_email_whose_object_is_gone(post: Post, sesmail: Sesmail) -> None:
    notification = post.store(post.address("store"))
    place = notification["receipt"]["action"]
    post.cloud.client("s3").delete_object(Bucket=place["bucketName"], Key=place["objectKey"])
    post.cloud.publish(notification)
    message_id = notification["mail"]["messageId"]
    post.dead_lettered(message_id)
    traced = sesmail(f"trace {message_id} --json").json
    assert traced["stored"] is None
    (place,) = traced["where"]
    assert "EmailNotFoundError" in place["text"]
    assert "the object is gone" in sesmail(f"trace {message_id}").out


def test_a_letter_that_nobody_can_see(post: Post, sesmail: Sesmail) -> None:
    recipient, _mailbox, message_id = post.parked()
    assert len(post.take()) == 1
    state, text = where(sesmail(f"trace {message_id} --json").json, recipient)
    assert state == "lost-sight"
    assert text.endswith(f"Send it again: sesmail replay {message_id} --recipient {recipient}")


def test_an_execution_that_died_uncaught(post: Post, sesmail: Sesmail) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="start", status=429, times=1000, mailbox=mailbox))
    message_id = post.send(recipient)
    post.until(lambda: bool(post.runs(message_id) and post.run(message_id).errors))
    post.cloud.client("stepfunctions").stop_execution(executionArn=post.run(message_id).arn)
    post.cloud.google.faults.clear()
    post.cloud.wait_idle()
    state, text = where(sesmail(f"trace {message_id} --json").json, recipient)
    assert state == "died"
    assert "the sweeper puts it into ses-email-input-dlq" in text


def test_a_record_outlives_the_execution(post: Post, sesmail: Sesmail) -> None:
    post.cloud.client("dynamodb").put_item(
        TableName=post.cloud.resource("DeliveriesTable"),
        Item={
            "PK": {"S": "EMAIL#longago"},
            "SK": {"S": "FORWARD#anna@gmail.example"},
            "delivery_state": {"S": "delivered"},
            "recipients": {"L": [{"S": "anna@example.com"}]},
            "updated_at": {"S": "2026-06-01T00:00:00Z"},
        },
    )
    traced = sesmail("trace longago --json").json
    assert where(traced, "anna@example.com") == (
        "delivered",
        f"delivered to anna@gmail.example at {when('2026-06-01T00:00:00Z')}, says its record; no "
        "execution is known",
    )
