"""Who gets a bounce and who must not: both corpora through the workflow, rule `*` → bounce."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from boto3.dynamodb.types import TypeDeserializer
from botocore.validate import ParamValidator
from ses_mail import bounce_policy, delivery_keys

from tests.corpus import must_bounce, must_not_bounce
from tests.corpus.must_bounce import Bounced
from tests.corpus.must_not_bounce import Quiet

from .kit import Post

# Slow enough that an email, however busy the machine, does not grow a day old on its way.
TIME_FACTOR = 0.02

_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def _everyone_unknown_is_bounced(post: Post) -> Iterator[None]:
    post.cloud.put_rule("*", "bounce")
    yield
    # Other modules rely on there being none.
    post.cloud.client("dynamodb").delete_item(
        TableName=post.cloud.resource("RoutingTable"),
        Key={"PK": {"S": "ROUTE#*"}, "SK": {"S": "RULE#v1"}},
    )


@dataclass(frozen=True)
class Sent:
    message_id: str
    sender: str
    recipients: list[str]


def send(post: Post, corpus: Sequence[Quiet] | Sequence[Bounced]) -> dict[str, Sent]:
    """Let SES receive the whole corpus, then announce it: what some notifications lack, no call to
    SES can leave out."""
    sent = {}
    post.cloud.pipe.pause()
    for case in corpus:
        number = next(_numbers)
        recipients = ("nobody{}@example.com",) if isinstance(case, Quiet) else case.recipients
        addresses = [recipient.format(number) for recipient in recipients]
        sender = case.sender.format(number)
        message_id = post.send(
            *addresses,
            raw=case.raw,
            sender=sender,
            verdicts={name: status for name, status in case.verdicts.items() if status},
            timestamp=post.cloud.now() - case.age,
        )
        sent[case.name] = Sent(message_id, sender, addresses)
    assert len(post.take("InputQueue")) == len(corpus)
    post.cloud.pipe.resume()
    for case in corpus:
        notification = post.cloud.notification(sent[case.name].message_id)
        for name, status in case.verdicts.items():
            if status is None:
                del notification["receipt"][f"{name}Verdict"]
        if isinstance(case, Quiet) and case.released:
            notification["redrive"] = {"attempt": 1, "ignoreVerdicts": True}
        post.cloud.publish(notification)
    post.cloud.wait_idle(120)
    return sent


def record(post: Post, message_id: str, recipient: str) -> dict[str, Any]:
    """What the deliveries table says of a bounce."""
    bounce_key = delivery_keys.bounce(message_id, recipient)["SK"]
    answer = post.cloud.client("dynamodb").get_item(
        TableName=post.cloud.resource("DeliveriesTable"),
        Key={"PK": {"S": f"EMAIL#{message_id}"}, "SK": {"S": bounce_key}},
    )
    return {n: TypeDeserializer().deserialize(v) for n, v in answer.get("Item", {}).items()}


def bounces(post: Post, message_id: str) -> list[dict[str, Any]]:
    return [bounce for bounce in post.cloud.bounces if bounce["messageId"] == message_id]


# -- must not bounce -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet(post: Post) -> dict[str, Sent]:
    return send(post, must_not_bounce.CORPUS)


@pytest.mark.parametrize("case", must_not_bounce.CORPUS, ids=lambda case: case.name)
def test_no_bounce(case: Quiet, post: Post, quiet: dict[str, Sent]) -> None:
    message_id, (recipient,) = quiet[case.name].message_id, quiet[case.name].recipients
    assert bounces(post, message_id) == []
    run = post.run(message_id)
    assert run.status == "SUCCEEDED"
    assert run.ended(case.outcome) == {recipient}
    if case.outcome == "suppressed":
        kept = record(post, message_id, recipient)
        assert (kept["delivery_state"], kept["reason"]) == ("suppressed", case.reason)
    else:
        assert [delivery["reason"] for delivery in run.deliveries] == [case.reason]
        assert record(post, message_id, recipient) == {}


def test_operators_see_why(post: Post, quiet: dict[str, Sent]) -> None:
    told = {
        line["messageId"]: line["reason"]
        for line in post.cloud.logs("bouncer")
        if line.get("message") == "Action result" and line["result"] == "suppressed"
    }
    for case in must_not_bounce.CORPUS:
        if case.outcome == "suppressed":
            assert told[quiet[case.name].message_id] == case.reason


def test_every_reason_is_in_the_corpus() -> None:
    assert len({case.name for case in must_not_bounce.CORPUS}) == len(must_not_bounce.CORPUS) >= 25
    reasons = {reason for reason, _ in bounce_policy._GUARDS}
    assert {case.reason for case in must_not_bounce.CORPUS} == reasons


# -- must bounce -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loud(post: Post) -> dict[str, Sent]:
    return send(post, must_bounce.CORPUS)


@pytest.mark.parametrize("case", must_bounce.CORPUS, ids=lambda case: case.name)
def test_one_bounce(case: Bounced, post: Post, loud: dict[str, Sent]) -> None:
    message_id, recipients = loud[case.name].message_id, loud[case.name].recipients
    assert post.run(message_id).ended("bounced") == set(recipients)
    (bounce,) = bounces(post, message_id)
    assert bounce["to"] == loud[case.name].sender
    told = post.cloud.notification(message_id)["mail"]["timestamp"]
    arrival = datetime.fromisoformat(told).replace(microsecond=0)
    check_request(bounce["request"], message_id, recipients, case.domain, arrival)
    for recipient in recipients:
        assert record(post, message_id, recipient)["delivery_state"] == "bounced"


def check_request(
    request: Mapping[str, Any],
    message_id: str,
    recipients: Sequence[str],
    domain: str,
    arrival: datetime,
) -> None:
    """A well-formed SendBounce: by AWS's own model of it, and by RFC 3464 and RFC 3463."""
    model = botocore.session.get_session().get_service_model("ses").operation_model("SendBounce")
    report = ParamValidator().validate(dict(request), model.input_shape)
    assert not report.has_errors(), report.generate_report()
    assert request["OriginalMessageId"] == message_id
    assert request["BounceSender"] == f"mailer-daemon@{domain}"
    assert request["Explanation"].isascii()
    assert request["MessageDsn"]["ReportingMta"] == f"dns; {domain}"
    assert request["MessageDsn"]["ArrivalDate"].replace(tzinfo=UTC) == arrival
    information = request["BouncedRecipientInfoList"]
    assert [item["Recipient"] for item in information] == recipients
    for item in information:
        assert item["BounceType"] == "DoesNotExist"
        fields = item["RecipientDsnFields"]
        assert fields["Action"] == "failed"
        assert fields["Status"] == "5.1.1"
        # SES: without `rfc822;` in front.
        assert fields["FinalRecipient"] == item["Recipient"]
        assert re.fullmatch(r"smtp; 550 5\.1\.1 [ -~]+", fields["DiagnosticCode"])
