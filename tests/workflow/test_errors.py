"""Every error class of the design reaches its reaction, and the email's other deliveries go on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from local.cloud import parameter_name
from local.gate import Refusal
from local.google import SCOPE_READONLY, Fault

from .kit import Letter, Post, Run, check_letter

# moto warns of errors that are in no service's model; AWS has such ones too.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not match an error shape")

LAMBDA_ERRORS = (
    "ClientExecutionTimeoutException",
    "ServiceException",
    "AWSLambdaException",
    "SdkClientException",
    "TooManyRequestsException",
)
FORWARD, BOUNCE, FETCH, ROUTE = "Forward to Gmail", "Send bounce", "Fetch email", "Look up routes"


# -- Gmail: all cases at once, each with a mailbox of its own --------------------------------------


@dataclass(frozen=True)
class Gmail:
    """What Google does to one mailbox; an error means that the delivery is dead-lettered."""

    title: str
    arrange: Callable[[Post, str], None]
    error: str = ""
    cause: str = ""
    attempts: int = 1


def fault(on: str, **options: Any) -> Callable[[Post, str], None]:
    def arrange(post: Post, mailbox: str) -> None:
        post.cloud.google.faults.append(Fault(on=on, mailbox=mailbox, **options))

    return arrange


def parameter(value: str | None) -> Callable[[Post, str], None]:
    def arrange(post: Post, mailbox: str) -> None:
        name = f"/ses-mail/test/gmail-tokens/{parameter_name(mailbox)}"
        ssm = post.cloud.client("ssm")
        if value is None:
            ssm.delete_parameter(Name=name)
        else:
            ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)

    return arrange


def scope(post: Post, mailbox: str) -> None:
    credentials = post.cloud.google.add_mailbox(mailbox, (SCOPE_READONLY,))
    parameter(json.dumps(credentials))(post, mailbox)


def other_mailbox(post: Post, mailbox: str) -> None:
    parameter(json.dumps(post.cloud.google.add_mailbox(f"other-{mailbox}")))(post, mailbox)


def revoked(post: Post, mailbox: str) -> None:
    post.cloud.google.revoke(mailbox)


TOKEN, REJECTED = "GmailTokenError", "GmailRejectedError"
RATE = {"status": 403, "reason": "rateLimitExceeded"}
GMAIL = [
    # The operator must act.
    Gmail("revoked", revoked, TOKEN, "invalid_grant"),
    Gmail("no credentials", parameter(None), TOKEN, "gmail-tokens/mailbox"),
    Gmail("no JSON", parameter("secret"), TOKEN, "is not a JSON object"),
    Gmail("half a token", parameter('{"client_id": "x"}'), TOKEN, "refresh_token"),
    Gmail("half an account", parameter('{"type": "service_account"}'), TOKEN, "lacks "),
    Gmail("missing scope", scope, TOKEN, "403"),
    Gmail("delegation denied", other_mailbox, TOKEN, "gmail-tokens/mailbox"),
    Gmail("401", fault("start", status=401, reason="authError", times=None), TOKEN, "401"),
    # This email will never do.
    Gmail("400", fault("start", status=400, reason="invalid"), REJECTED, "400 invalid"),
    Gmail("400 at the end", fault("last_chunk", status=400, reason="invalid"), REJECTED, "400"),
    Gmail("413", fault("start", status=413, reason="uploadTooLarge"), REJECTED, "413"),
    # Waiting helps. (httplib2 asks twice by itself when a connection breaks.)
    Gmail("429", fault("start", status=429, reason="rateLimitExceeded", times=2), attempts=3),
    Gmail("403 rate limit", fault("start", **RATE), attempts=2),
    Gmail("403 rate limit at the end", fault("last_chunk", **RATE), attempts=2),
    Gmail("500", fault("start", status=500), attempts=2),
    Gmail("503 in HTML", fault("last_chunk", status=503, html=True), attempts=2),
    Gmail("reset", fault("last_chunk", kind="reset", times=2), attempts=2),
    Gmail("answer lost", fault("last_chunk", kind="reset", when="after", times=2), attempts=2),
    Gmail("session lost", fault("last_chunk", status=404), attempts=2),
    # google-auth asks three times by itself.
    Gmail("no tokens", fault("token", status=500, reason="internal_failure", times=3), attempts=2),
]


@dataclass(frozen=True)
class Sent:
    run: Run
    recipient: str
    mailbox: str
    bystander: str
    letters: list[Letter]


@pytest.fixture(scope="module")
def gmail(post: Post) -> dict[str, Sent]:
    made = {}
    for case in GMAIL:
        (recipient, mailbox), (other, bystander) = post.forwarded(), post.forwarded()
        case.arrange(post, mailbox)
        made[case.title] = (post.send(recipient, other), recipient, mailbox, bystander)
    post.cloud.wait_idle(120)
    letters = post.take()
    return {
        title: Sent(
            post.run(message_id),
            recipient,
            mailbox,
            bystander,
            [letter for letter in letters if letter.body["mail"]["messageId"] == message_id],
        )
        for title, (message_id, recipient, mailbox, bystander) in made.items()
    }


@pytest.mark.parametrize("case", GMAIL, ids=lambda case: case.title)
def test_gmail(case: Gmail, post: Post, gmail: dict[str, Sent]) -> None:
    sent = gmail[case.title]
    assert post.copies(sent.bystander) == 1
    assert sent.run.attempts[FORWARD] == case.attempts + 1  # the other delivery's one
    if case.error:
        assert (sent.run.status, sent.run.error) == ("FAILED", "DeadLettered")
        assert post.is_marked(sent.run)
        assert sent.run.ended("dead-lettered") == {sent.recipient}
        (letter,) = sent.letters
        assert letter.queue == "GmailForwarderDlq"
        check_letter(
            letter,
            sent.run,
            case.error,
            action="forward-to-gmail",
            target=sent.mailbox,
            rule=sent.recipient,
            recipients=[sent.recipient],
            cause=case.cause,
        )
        assert post.copies(sent.mailbox) == 0
    else:
        assert sent.run.status == "SUCCEEDED"
        assert {error for _, error in sent.run.errors} == {"GmailTemporaryError"}
        assert post.copies(sent.mailbox) == 1
        assert sent.letters == []


# -- SES ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "attempts"),
    [
        (("MessageRejected", 1), "BounceRejectedError", 1),
        (("MailFromDomainNotVerifiedException", 1), "BounceRejectedError", 1),
        (("AccountSendingPausedException", 1), "BounceRejectedError", 1),
        (("Throttling", 2), "", 3),
        (("SomethingElse", 1), "", 2),
        (("SomethingElse", 9), "ClientError", 9),
    ],
    ids=str,
)
def test_bounce(post: Post, fault: tuple[str, int], error: str, attempts: int) -> None:
    code, times = fault
    post.cloud.gate.refuse("ses:SendBounce", code, times=times)
    (good, mailbox), bad = post.forwarded(), [post.address("bounce"), post.address("bounce")]
    before = len(post.cloud.bounces)
    message_id = post.send(good, *bad)
    run = post.dead_lettered(message_id) if error else post.delivered(message_id)
    assert run.attempts[BOUNCE] == attempts
    assert post.copies(mailbox) == 1
    bounced = [bounce["recipients"] for bounce in post.cloud.bounces[before:]]
    assert bounced == ([] if error else [bad])
    letters = post.take()
    assert len(letters) == (1 if error else 0)
    for letter in letters:
        assert letter.queue == "BouncerDlq"
        check_letter(
            letter, run, error, action="bounce", rule=", ".join(bad), recipients=bad,
            cause=code,
        )  # fmt: skip


# -- routing and fetching --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "target", "cause"),
    [
        ("foward-to-gmail", "a@gmail.example", "unknown action 'foward-to-gmail'"),
        ("forward-to-gmail", "", "target '' is not an address"),
        ("forward-to-gmail", [], "neither an address nor a list"),
        ("forward-to-gmail", "nonsense", "target 'nonsense' is not an address"),
        ("forward-to-gmail", ["a@gmail.example", "b"], "target 'b' is not an address"),
        ("", "", "unknown action ''"),
    ],
    ids=str,
)
def test_malformed_rule_parks_only_its_recipients(
    post: Post, action: str, target: Any, cause: str
) -> None:
    (good, mailbox), bad = post.forwarded(), post.address(action, target)
    run = post.dead_lettered(post.send(bad, good))
    assert post.copies(mailbox) == 1
    assert run.attempts[ROUTE] == 1
    (letter,) = post.take()
    assert letter.queue == "InputDlq"
    check_letter(
        letter, run, "InvalidRoutingRuleError", action="route", rule=bad, recipients=[bad],
        cause=cause,
    )  # fmt: skip


def test_database_error_is_never_no_rule(post: Post) -> None:
    recipients = [post.address("bounce"), post.forwarded()[0]]
    post.cloud.gate.refuse("dynamodb:BatchGetItem", "AccessDeniedException")
    run = post.dead_lettered(post.send(*recipients))
    assert run.attempts == {FETCH: 1, ROUTE: 9, "Park": 1, "Record dead letters": 1}
    (letter,) = post.take()
    assert letter.queue == "InputDlq"
    check_letter(
        letter, run, "ClientError", action="route", recipients=recipients,
        cause="AccessDeniedException",
    )  # fmt: skip


def test_database_error_that_passes(post: Post) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.gate.refuse("dynamodb:BatchGetItem", "AccessDeniedException", times=3)
    assert post.delivered(post.send(recipient)).attempts[ROUTE] == 4
    assert post.copies(mailbox) == 1


def _lost_object(post: Post, notification: dict[str, Any]) -> str:
    action = notification["receipt"]["action"]
    post.cloud.client("s3").delete_object(Bucket=action["bucketName"], Key=action["objectKey"])
    return action["objectKey"]


def _foreign_bucket(post: Post, notification: dict[str, Any]) -> str:
    notification["receipt"]["action"]["bucketName"] = "somebody-elses-bucket"
    return "somebody-elses-bucket"


@pytest.mark.parametrize(
    ("arrange", "error"),
    [(_lost_object, "EmailNotFoundError"), (_foreign_bucket, "InvalidNotificationError")],
)
def test_permanent_fetch_errors(
    post: Post, arrange: Callable[[Post, dict[str, Any]], str], error: str
) -> None:
    recipients = [post.address("bounce"), post.forwarded()[0]]
    notification = post.store(*recipients)
    cause = arrange(post, notification)
    post.cloud.publish(notification)
    run = post.dead_lettered(notification["mail"]["messageId"])
    assert run.attempts == {FETCH: 1, "Park": 1, "Record dead letters": 1}
    (letter,) = post.take()
    assert letter.queue == "InputDlq"
    check_letter(letter, run, error, action="fetch", recipients=recipients, cause=cause)


# -- Lambda itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", LAMBDA_ERRORS)
def test_lambda_service_errors_are_retried_in_every_task(post: Post, code: str) -> None:
    seen: set[str] = set()

    def first_call(params: Mapping[str, Any]) -> bool:
        name = params["FunctionName"].rpartition(":")[2]
        is_first = "starter" not in name and name not in seen
        seen.add(name)
        return is_first

    recipients = [post.forwarded()[0], post.address("bounce")]
    post.cloud.gate.refuse("lambda:Invoke", code, first_call)
    run = post.delivered(post.send(*recipients))
    assert run.attempts == {FETCH: 2, ROUTE: 2, FORWARD: 2, BOUNCE: 2}
    assert sorted(run.errors) == sorted(
        (task, f"Lambda.{code}") for task in (FETCH, ROUTE, FORWARD, BOUNCE)
    )


def test_killed_process(post: Post) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="last_chunk", kind="hang", mailbox=mailbox))
    begun = post.cloud.google.requests["last_chunk"]
    message_id = post.send(recipient)
    post.until(lambda: post.cloud.google.requests["last_chunk"] > begun)
    post.kill("gmail-forwarder")
    run = post.delivered(message_id)
    assert (FORWARD, "Runtime.ExitError") in run.errors
    # The lease of the killed process had to run out first.
    assert {e for _, e in run.errors} <= {"Runtime.ExitError", "DeliveryInProgressError"}
    assert post.copies(mailbox) == 1


def test_three_crashed_attempts(post: Post) -> None:
    """Each leaves a lease behind that has to run out."""
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="last_chunk", kind="hang", mailbox=mailbox, times=3))
    begun = post.cloud.google.requests["last_chunk"]
    message_id = post.send(recipient)

    def hangs_or_ended(times: int) -> bool:
        ended = any(run.status != "RUNNING" for run in post.runs(message_id))
        return ended or post.cloud.google.requests["last_chunk"] > begun + times

    for crash in range(3):
        post.until(lambda n=crash: hangs_or_ended(n))
        post.kill("gmail-forwarder")
    run = post.delivered(message_id)
    assert run.errors.count((FORWARD, "Runtime.ExitError")) == 3
    assert (FORWARD, "DeliveryInProgressError") in run.errors
    assert post.copies(mailbox) == 1


def test_task_that_times_out(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.asl.TASK_TIMEOUT_FLOOR", 5.0)
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="last_chunk", kind="hang", mailbox=mailbox))
    run = post.delivered(post.send(recipient))
    assert (FORWARD, "States.Timeout") in run.errors
    assert post.copies(mailbox) == 1
    post.kill("gmail-forwarder")  # the one that still hangs


def test_function_that_times_out(post: Post) -> None:
    recipient, mailbox = post.forwarded()
    post.cloud.google.faults.append(Fault(on="start", kind="hang", mailbox=mailbox))
    run = post.delivered(post.send(recipient))
    assert (FORWARD, "Sandbox.Timedout") in run.errors
    assert post.copies(mailbox) == 1


@pytest.mark.parametrize("action", ["forward-to-gmail", "bounce"])
def test_result_that_lacks_its_outcome(
    post: Post, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    (good, mailbox), bad = post.forwarded(), post.address(action, post.mailbox())
    invoke = post.cloud.runtime.invoke

    def without_outcome(name: str, event: Any) -> tuple[str, bool]:
        answer = invoke(name, event)
        delivery = event.get("delivery", {}) if isinstance(event, dict) else {}
        is_his = delivery.get("action") == action and bad in delivery["recipients"]
        return ("{}", False) if is_his else answer

    monkeypatch.setattr(post.cloud.runtime, "invoke", without_outcome)
    run = post.dead_lettered(post.send(bad, good))
    assert post.copies(mailbox) == 1
    (letter,) = post.take()
    assert letter.failure["error"] == "States.QueryEvaluationError"
    assert letter.failure["recipients"] == [bad]
    assert run.attempts[FORWARD if action == "forward-to-gmail" else BOUNCE] > 8


def test_action_of_a_later_release_is_parked(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    (good, mailbox), new = post.forwarded(), post.address("store")
    invoke = post.cloud.runtime.invoke

    def later_release(name: str, event: Any) -> tuple[str, bool]:
        payload, failed = invoke(name, event)
        return payload.replace('"store"', '"webhook"') if "router" in name else payload, failed

    monkeypatch.setattr(post.cloud.runtime, "invoke", later_release)
    run = post.dead_lettered(post.send(new, good))
    assert post.copies(mailbox) == 1
    assert run.ended("dead-lettered") == {new}
    (letter,) = post.take()
    assert letter.queue == "InputDlq"
    check_letter(
        letter, run, "UnknownActionError", action="route", rule=new, recipients=[new],
        cause="does not know the action webhook",
    )  # fmt: skip


# -- leases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [0.02, 1000], ids=["runs out", "for ever"])
@pytest.mark.parametrize(
    ("action", "attempts"), [("forward-to-gmail", 17), ("bounce", 17)], ids=["forward", "bounce"]
)
def test_lease_of_another_attempt(post: Post, action: str, attempts: int, hours: float) -> None:
    mailbox = post.mailbox() if action == "forward-to-gmail" else ""
    recipient = post.address(action, mailbox)
    notification = post.store(recipient)
    kind = f"FORWARD#{mailbox}" if mailbox else f"BOUNCE#{recipient}"
    message_id = notification["mail"]["messageId"]
    post.cloud.client("dynamodb").put_item(
        TableName=post.cloud.resource("DeliveriesTable"),
        Item={
            "PK": {"S": f"EMAIL#{message_id}"},
            "SK": {"S": kind},
            "delivery_state": {"S": "claimed"},
            "lease_token": {"S": "another's"},
            "lease_until": {"N": str(int(post.cloud.now() + hours * 3600))},
        },
    )
    post.cloud.publish(notification)
    task = FORWARD if mailbox else BOUNCE
    if hours < 1:
        run = post.delivered(message_id)
        assert run.attempts[task] <= attempts
        assert set(run.errors) <= {(task, "DeliveryInProgressError")}
    else:
        run = post.dead_lettered(message_id)
        assert run.attempts[task] == attempts
        (letter,) = post.take()
        check_letter(
            letter, run, "DeliveryInProgressError", action=action, target=mailbox, rule=recipient,
            recipients=[recipient],
        )  # fmt: skip


# -- parking that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["GmailForwarderDlq", "BouncerDlq", "InputDlq"])
def test_dead_letter_queue_that_cannot_be_written(post: Post, queue: str) -> None:
    (good, mailbox) = post.forwarded()
    bad = {
        "GmailForwarderDlq": lambda: post.address("forward-to-gmail", post.mailbox(False)),
        "BouncerDlq": lambda: post.address("bounce"),
        "InputDlq": lambda: post.address("nonsense"),
    }[queue]()
    post.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    refused = _refuse_queue(post, queue)
    message_id = post.send(bad, good)
    post.cloud.wait_idle()
    run = post.run(message_id)
    assert (run.status, run.error) == ("FAILED", "ParkingFailed")
    assert run.entered[-2:] == ["All delivered?", "Parking failed"]
    assert run.ended("unparked") == {bad}
    assert run.ended("delivered") == {good}
    assert post.copies(mailbox) == 1
    assert not post.is_marked(run)
    assert refused.count == 11


def test_input_dlq_that_cannot_take_the_email(post: Post) -> None:
    notification = post.store(post.address("store"))
    _lost_object(post, notification)
    refused = _refuse_queue(post, "InputDlq")
    post.cloud.publish(notification)
    post.cloud.wait_idle()
    run = post.run(notification["mail"]["messageId"])
    assert (run.status, run.error) == ("FAILED", "ParkingFailed")
    assert run.entered == [
        *("Fetch email", "For each delivery", "Which action?", "Park", "Unparked"),
        *("All delivered?", "Parking failed"),
    ]
    assert not post.is_marked(run)
    assert refused.count == 11


def test_parked_and_unparked(post: Post) -> None:
    """One queue takes its dead letter, another does not: the email as a whole has no mark."""
    parked, unparked = post.address("nonsense"), post.address("bounce")
    post.cloud.gate.refuse("ses:SendBounce", "MessageRejected", times=1)
    _refuse_queue(post, "BouncerDlq")
    message_id = post.send(parked, unparked)
    post.cloud.wait_idle()
    run = post.run(message_id)
    assert (run.status, run.error) == ("FAILED", "ParkingFailed")
    assert run.ended("dead-lettered") == {parked}
    assert run.ended("unparked") == {unparked}
    assert not post.is_marked(run)


def test_queue_that_comes_back(post: Post) -> None:
    bad = post.address("nonsense")
    _refuse_queue(post, "InputDlq", times=3)
    run = post.dead_lettered(post.send(bad))
    assert run.attempts["Park"] == 4
    assert len(post.take("InputDlq")) == 1


def test_mark_that_cannot_be_written(post: Post) -> None:
    post.cloud.gate.refuse(
        "dynamodb:PutItem",
        "AccessDeniedException",
        lambda params: params["Item"].get("SK", {}).get("S", "").startswith("PARKED#"),
    )
    message_id = post.send(post.address("nonsense"))
    post.cloud.wait_idle()
    run = post.run(message_id)
    assert (run.status, run.error) == ("FAILED", "DeadLettered")
    assert run.attempts["Record dead letters"] == 11
    assert not post.is_marked(run)
    assert len(post.take("InputDlq")) == 1


def _refuse_queue(post: Post, queue: str, times: int | None = None) -> Refusal:
    url = post.cloud.resource(queue)
    return post.cloud.gate.refuse(
        "sqs:SendMessage", "AccessDenied", lambda params: params["QueueUrl"] == url, times
    )
