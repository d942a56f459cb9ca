"""`sesmail health`."""

from datetime import UTC, datetime

from tests.workflow.kit import Post

from .conftest import Sesmail


def test_healthy_and_not(post: Post, sesmail: Sesmail) -> None:
    post.cloud.client("cloudwatch").put_metric_data(
        Namespace="SESMail/test",
        MetricData=[
            {
                "MetricName": "GmailTokenValid",
                "Dimensions": [{"Name": "service", "Value": "token-monitor"}],
                "Timestamp": datetime.now(UTC),
                "Value": 1,
            }
        ],
    )
    post.send(post.address("typo"))
    post.cloud.wait_idle()
    answer = sesmail("health --json", code=1).json
    assert answer["status"] == "UNHEALTHY"
    assert any("ses-email-input-dlq-test holds 1" in issue for issue in answer["report"]["issues"])
    ran = sesmail("health", code=1)
    assert "UNHEALTHY" in ran.out
    assert "ses-gmail-forwarder-dlq-test" in ran.out
    assert "ses-email-input-dlq-test holds 1 dead letters" in ran.out


def test_a_paused_pipe_is_told(post: Post, sesmail: Sesmail) -> None:
    post.cloud.pipe.pause()
    ran = sesmail("health", code=1)
    assert "is paused" in ran.out
