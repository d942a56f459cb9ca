"""`sesmail pause` and `sesmail resume`."""

from datetime import UTC, datetime, timedelta

from local.cloud import Cloud

from .conftest import Sesmail

EMAIL = b"From: a@sender.example\r\nSubject: Waiting\r\n\r\nHello\r\n"


def test_mail_waits_while_the_pipe_is_paused(cloud: Cloud, sesmail: Sesmail) -> None:
    cloud.put_rule("*", "store")
    paused = sesmail("pause --yes --json").json
    assert paused["desired_state"] == "STOPPED"
    until = datetime.fromisoformat(paused["mail_keeps_until"])
    assert timedelta(days=9) < until - datetime.now(UTC) <= timedelta(days=10, minutes=1)
    message_id = cloud.send(EMAIL, "a@sender.example", ["anna@example.com"])
    assert sesmail("pause --yes --json").json["waiting"] == 1
    assert cloud.executions(message_id) == []
    assert "RUNNING" in sesmail("resume").out
    cloud.wait_idle()
    (execution,) = cloud.executions(message_id)
    assert execution["status"] == "SUCCEEDED"


def test_without_a_terminal_it_does_not_guess_the_answer(cloud: Cloud, sesmail: Sesmail) -> None:
    assert "add --yes" in sesmail("pause", code=2).err
    assert cloud.client("pipes").describe_pipe(Name="ses-email-router-test")["DesiredState"] == (
        "RUNNING"
    )
