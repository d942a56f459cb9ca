"""`sesmail dlq`: look at dead letters, send them back, throw them away."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import automation
from cli.session import Session
from tests.workflow.kit import Post

from .conftest import Sesmail


def parked(post: Post, count: int = 1) -> tuple[str, list[str]]:
    """A mailbox whose token was revoked, and emails that could not go there."""
    recipient, mailbox = post.forwarded()
    post.cloud.google.revoke(mailbox)
    message_ids = [post.send(recipient) for _ in range(count)]
    post.cloud.wait_idle(120)
    return mailbox, message_ids


def queues(sesmail: Sesmail) -> dict[str, Any]:
    return {row["queue"]: row for row in sesmail("dlq list --json").lines}


def test_list_and_show_leave_everything_where_it_is(post: Post, sesmail: Sesmail) -> None:
    mailbox, (message_id,) = parked(post)
    post.send(post.address("typo"))
    post.cloud.wait_idle()
    for _ in range(2):
        found = queues(sesmail)
        assert found["forwarder"]["errors"] == {"GmailTokenError": 1}
        assert found["input"]["errors"] == {"InvalidRoutingRuleError": 1}
        assert (found["bouncer"]["visible"], found["bouncer"]["errors"]) == (0, {})
        assert [found[q]["visible"] for q in ("input", "forwarder")] == [1, 1]
        assert [found[q]["in_flight"] for q in ("input", "forwarder")] == [0, 0]
    assert "GmailTokenError 1" in sesmail("dlq list").out
    (letter,) = sesmail("dlq show forwarder --json").lines
    assert letter["message_id"] == message_id
    assert letter["letter"]["redrive"]["attempt"] == 1
    assert letter["letter"]["failure"]["target"] == mailbox
    assert "invalid_grant" in letter["cause"]
    assert len(sesmail("dlq show --json").lines) == 2
    assert len(sesmail(f"dlq show --message-id {message_id} --json").lines) == 1
    shown = sesmail("dlq show").out
    assert message_id in shown
    assert "unknown action 'typo'" in shown
    assert len(post.take()) == 2


def test_letters_without_a_reason_and_without_sense(post: Post, sesmail: Sesmail) -> None:
    """What SNS or a person puts there is no letter of ours."""
    sqs, url = post.cloud.client("sqs"), post.cloud.resource("InputDlq")
    for text in ("no JSON", "[1]", '{"original": "x", "failure": {"error": "E", "cause": "c"}}'):
        sqs.send_message(QueueUrl=url, MessageBody=text)
    assert queues(sesmail)["input"]["errors"] == {"no reason": 2, "E": 1}
    letters = sesmail("dlq show input --json").lines
    assert [letter["letter"] for letter in letters][:2] == ["no JSON", "[1]"]
    assert "none given" in sesmail("dlq show input").out


def test_redrive_delivers_all_once_the_token_is_mended(post: Post, sesmail: Sesmail) -> None:
    mailbox, message_ids = parked(post, 3)
    other, _ = parked(post)
    post.cloud.add_mailbox(mailbox)
    before = len(message_ids)
    answer = sesmail("dlq redrive forwarder --error GmailTokenError --velocity 5 --json").json
    assert answer["redriven"] == before + 1
    assert answer["failed"] == 0
    post.cloud.wait_idle(120)
    assert post.copies(mailbox) == before
    assert post.copies(other) == 0
    # Only what failed again is there again.
    (letter,) = post.take("GmailForwarderDlq")
    assert letter.failure["target"] == other


def test_redrive_of_another_error_moves_nothing(post: Post, sesmail: Sesmail) -> None:
    parked(post)
    ran = sesmail("dlq redrive forwarder --error GmailRejectedError --json", code=3)
    assert ran.json["error"] == (
        "No letter with Error GmailRejectedError is in ses-gmail-forwarder-dlq-test: 1 other is "
        "there. Nothing was redriven"
    )
    assert len(post.take("GmailForwarderDlq")) == 1


def test_redrive_at_most(post: Post, sesmail: Sesmail) -> None:
    mailbox, _ = parked(post, 3)
    post.cloud.add_mailbox(mailbox)
    assert sesmail("dlq redrive forwarder --max 2 --json").json["redriven"] == 2
    post.cloud.wait_idle(120)
    assert post.copies(mailbox) == 2
    assert len(post.take("GmailForwarderDlq")) == 1


def test_redrive_goes_on_after_the_time_limit(post: Post, sesmail: Sesmail) -> None:
    """With a limit of 40 s a run sends no more than 41 letters at one a second."""
    sqs, ssm = post.cloud.client("sqs"), post.cloud.client("ssm")
    source, name = post.cloud.resource("InputQueue"), "SESMail-DLQ-Redrive-test"
    post.cloud.pipe.pause()
    for _ in range(10):
        sqs.send_message_batch(
            QueueUrl=post.cloud.resource("BouncerDlq"),
            Entries=[{"Id": str(number), "MessageBody": "a letter"} for number in range(10)],
        )
    deployed = ssm.get_document(Name=name)
    assert deployed["Content"].count("RUN = 540") == 1
    shorter = ssm.update_document(
        Name=name,
        Content=deployed["Content"].replace("RUN = 540", "RUN = 40"),
        DocumentVersion="$LATEST",
        DocumentFormat=deployed["DocumentFormat"],
    )["DocumentDescription"]["DocumentVersion"]
    ssm.update_document_default_version(Name=name, DocumentVersion=shorter)
    before = runs(ssm)
    try:
        answer = sesmail("dlq redrive bouncer --velocity 1 --json").json
    finally:
        ssm.update_document_default_version(Name=name, DocumentVersion=deployed["DocumentVersion"])
    assert (answer["redriven"], answer["failed"], answer["remaining"]) == (100, 0, 0)
    assert len(runs(ssm)) >= len(before) + 3
    waiting = sqs.get_queue_attributes(
        QueueUrl=source, AttributeNames=["ApproximateNumberOfMessages"]
    )["Attributes"]
    assert waiting == {"ApproximateNumberOfMessages": "100"}
    sqs.purge_queue(QueueUrl=source)


def runs(ssm: Any) -> list[str]:
    """The states of all automations that redrove."""
    named = [{"Key": "DocumentNamePrefix", "Values": ["SESMail-DLQ-Redrive-test"]}]
    pages = ssm.get_paginator("describe_automation_executions").paginate(Filters=named)
    return [
        execution["AutomationExecutionStatus"]
        for page in pages
        for execution in page["AutomationExecutionMetadataList"]
    ]


def test_redrive_of_one_email(post: Post, sesmail: Sesmail) -> None:
    mailbox, (first, second) = parked(post, 2)
    post.cloud.add_mailbox(mailbox)
    answer = sesmail(f"dlq redrive forwarder --message-id {second} --json").json
    assert answer.pop("summary").startswith("1 redriven, 0 failed, 0 remaining, 1 others skipped")
    assert answer == {"redriven": 1, "failed": 0, "filtered": 1, "remaining": 0}
    post.cloud.wait_idle()
    assert [run.status for run in post.runs(second)] == ["FAILED", "SUCCEEDED"]
    assert len(post.runs(first)) == 1
    (letter,) = post.take("GmailForwarderDlq")
    assert letter.attributes["MessageId"] == first


def test_discard_keeps_a_copy_and_the_email_can_be_replayed(
    post: Post, sesmail: Sesmail, tmp_path: Path
) -> None:
    mailbox, (message_id, other) = parked(post, 2)
    path = tmp_path / "kept.jsonl"
    line = f"dlq discard forwarder --message-id {message_id} --save {path}"
    assert "add --yes" in sesmail(line, code=2).err
    assert not path.exists()
    assert queues(sesmail)["forwarder"]["visible"] == 2
    assert "sesmail replay" in sesmail(f"{line} --yes").out
    (kept,) = map(json.loads, path.read_text().splitlines())
    assert kept["letter"]["mail"]["messageId"] == message_id
    assert kept["attributes"]["Error"]["StringValue"] == "GmailTokenError"
    (letter,) = post.take("GmailForwarderDlq")
    assert letter.attributes["MessageId"] == other
    post.cloud.add_mailbox(mailbox)
    sesmail(f"replay {message_id} --yes")
    post.cloud.wait_idle()
    assert post.copies(mailbox) == 1


def test_discard_by_error_keeps_a_copy_of_itself(
    post: Post, sesmail: Sesmail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked(post, 2)
    monkeypatch.chdir(tmp_path)
    answer = sesmail("dlq discard forwarder --error GmailTokenError --yes --json").json
    assert len(answer["discarded"]) == 2
    assert len(Path(answer["saved"]).read_text().splitlines()) == 2
    assert post.take() == []


def test_discard_keeps_its_copy_where_no_git_looks(
    post: Post, sesmail: Sesmail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked(post)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    saved = Path(
        sesmail("dlq discard forwarder --error GmailTokenError --yes --json").json["saved"]
    )
    assert saved.parent == tmp_path / "home/.local/state/sesmail"
    assert len(saved.read_text().splitlines()) == 1


def test_discard_that_is_killed_between_its_two_steps_loses_nothing(
    post: Post, sesmail: Sesmail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever SQS deletes lies in the file by then."""
    _, message_ids = parked(post, 2)
    path = tmp_path / "kept.jsonl"
    kept: list[str] = []

    def die(params: dict[str, Any], **_: Any) -> None:
        kept.extend(json.loads(line)["message_id"] for line in path.read_text().splitlines())
        raise KeyboardInterrupt

    make = Session.sqs.func

    def doomed(session: Session) -> Any:
        client = make(session)
        client.meta.events.register("provide-client-params.sqs.DeleteMessage", die)
        return client

    with monkeypatch.context() as patched:
        patched.setattr(Session, "sqs", property(doomed))
        sesmail(f"dlq discard forwarder --error GmailTokenError --yes --save {path}", code=130)
    assert len(kept) == 1
    assert set(kept) < set(message_ids)
    assert len(post.take("GmailForwarderDlq")) == 2


def test_discard_to_a_file_that_cannot_be_written_discards_nothing(
    post: Post, sesmail: Sesmail, tmp_path: Path
) -> None:
    parked(post)
    line = f"dlq discard forwarder --error GmailTokenError --yes --save {tmp_path}"
    assert f"{tmp_path} cannot be written: Is a directory" in sesmail(line, code=2).err
    assert len(post.take("GmailForwarderDlq")) == 1


@pytest.mark.parametrize("refused", [1, 2])
def test_redrive_tells_failed_from_filtered(
    post: Post, sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """As the document tells it; that SQS refuses a letter is one of its own tests."""
    outputs = {"RedrivenCount": "0", "FailedCount": str(refused), "SkippedCount": "3"}
    outputs |= {"Remaining": str(refused), "Summary": "all of it"}
    monkeypatch.setattr(automation, "run", lambda *_: outputs)
    ran = sesmail("dlq redrive forwarder --error GmailTokenError --json", code=1)
    assert ran.json == {
        "redriven": 0,
        "failed": refused,
        "filtered": 3,
        "remaining": refused,
        "summary": "all of it",
    }
    assert "SQS did not take it" in ran.err
    assert "all of it" in sesmail("dlq redrive forwarder", code=1).out


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("dlq discard forwarder --yes", 2, "Say which letters"),
        ("dlq discard forwarder --error Nothing --yes", 3, "nothing was discarded"),
        ("dlq redrive nowhere", 2, "nowhere"),
        ("dlq redrive bouncer --velocity 0", 2, "velocity"),
        ("dlq redrive bouncer --message-id nosuch", 3, "No letter with MessageId nosuch"),
        ("dlq redrive bouncer", 3, "No letter is in ses-bouncer-dlq-test: no others are there"),
        ("dlq show --message-id nosuch", 3, "No letter of nosuch"),
    ],
)
def test_what_changes_nothing(
    post: Post, sesmail: Sesmail, line: str, code: int, text: str
) -> None:
    assert text in sesmail(line, code=code).err


def test_ctrl_c_cancels_the_automation(
    post: Post, sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssm = post.cloud.client("ssm")
    before = len(runs(ssm))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(automation, "time", SimpleNamespace(sleep=interrupt))
        sesmail("dlq redrive forwarder", code=130)
    post.until(lambda: "InProgress" not in runs(ssm) and "Cancelling" not in runs(ssm))
    assert len(runs(ssm)) == before + 1
    assert "Cancelled" in runs(ssm)
