"""Reading SES's notifications, however they arrive and whatever they lack."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ses_mail import dead_letters, notification
from ses_mail.errors import CAUSE_LENGTH, InvalidNotificationError
from ses_mail.payloads import Failure

NOTIFICATION = json.loads((Path(__file__).parents[2] / "events/ses-notification.json").read_text())
MESSAGE_ID = NOTIFICATION["mail"]["messageId"]
RECIPIENTS = ["anna+news@example.com", "info@example.com"]
MAIL = {
    "messageId": MESSAGE_ID,
    "source": "jane@partner.example",
    "timestamp": "2026-11-24T10:00:00.000Z",
}
RECEIPT = {
    "timestamp": "2026-11-24T10:00:00.000Z",
    "recipients": RECIPIENTS,
    "spamVerdict": {"status": "PASS"},
    "virusVerdict": {"status": "PASS"},
    "spfVerdict": {"status": "PASS"},
    "dkimVerdict": {"status": "PASS"},
    "dmarcVerdict": {"status": "PASS"},
    "action": {
        "type": "S3",
        "bucketName": "ses-mail-storage-123456789012-test",
        "objectKey": f"emails/{MESSAGE_ID}",
    },
}
REDUCED = {"mail": MAIL, "receipt": RECEIPT}
ABSENT = object()


def with_(path: str, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """The notification with one field, named by a dotted path, set or made absent."""
    changed = copy.deepcopy(NOTIFICATION if base is None else base)
    *parents, last = path.split(".")
    place = changed
    for name in parents:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return changed


def redriven(**redrive: Any) -> dict[str, Any]:
    return {**NOTIFICATION, "redrive": redrive}


def test_only_what_the_workflow_needs_is_kept() -> None:
    email = notification.parse(json.dumps(NOTIFICATION))
    assert email == notification.Notification(MAIL, RECEIPT, None)
    assert json.loads(email.execution_input()) == REDUCED
    assert email.message_id == MESSAGE_ID
    assert not email.is_setup


SNS = {
    "Type": "Notification",
    "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
    "TopicArn": "arn:aws:sns:ap-southeast-2:123456789012:ses-email-processing-test",
    "Subject": "Amazon SES Email Receipt Notification",
    "Message": json.dumps(NOTIFICATION),
    "Timestamp": "2026-11-24T10:00:00.000Z",
}
FAILURE = {"action": "start", "error": "InvalidNotificationError", "cause": "…", "at": "…"}


@pytest.mark.parametrize(
    "body",
    [
        NOTIFICATION,
        json.dumps(NOTIFICATION),
        json.dumps(json.dumps(NOTIFICATION)),
        json.dumps(SNS),
        json.dumps(json.dumps(SNS)),
        json.dumps({"original": json.dumps(NOTIFICATION), "failure": FAILURE}),
        {"original": NOTIFICATION, "failure": FAILURE},
        json.dumps({"original": json.dumps(SNS), "failure": FAILURE}),
        json.dumps({**SNS, "Message": json.dumps({"original": NOTIFICATION, "failure": FAILURE})}),
        json.dumps({"original": {"original": json.dumps(NOTIFICATION)}, "failure": FAILURE}),
        json.dumps(REDUCED),
        json.dumps({**REDUCED, "failure": FAILURE}),
        f"\n {json.dumps(NOTIFICATION)} \r\n",
    ],
    ids=[
        "object",
        "raw delivery",
        "JSON in a JSON string",
        "SNS envelope",
        "SNS envelope in a JSON string",
        "parked by the starter",
        "parked by hand",
        "SNS envelope parked",
        "parked within an SNS envelope",
        "parked twice",
        "reduced",
        "dead letter without redrive",
        "space around",
    ],
)
def test_every_way_in(body: object) -> None:
    assert json.loads(notification.parse(body).execution_input()) == REDUCED


def test_a_dead_letter_of_the_workflow_comes_back() -> None:
    letter = {
        **REDUCED,
        "redrive": {"attempt": 2, "recipients": ["info@example.com"], "ignoreVerdicts": True},
        "failure": FAILURE,
    }
    email = notification.parse(json.dumps(letter))
    assert email.redrive == letter["redrive"]
    assert "failure" not in json.loads(email.execution_input())
    assert re.fullmatch(rf"{MESSAGE_ID}-2-[0-9a-f]{{8}}", email.execution_names()[0])


@pytest.mark.parametrize(
    ("path", "place", "left"),
    [
        ("notificationType", "", REDUCED),
        ("mail.timestamp", "mail", {k: v for k, v in MAIL.items() if k != "timestamp"}),
        ("mail.source", "mail", {**MAIL, "source": ""}),
        ("mail.destination", "", REDUCED),
        ("mail.headers", "", REDUCED),
        ("mail.headersTruncated", "", REDUCED),
        ("mail.commonHeaders", "", REDUCED),
        ("receipt.timestamp", "receipt", {k: v for k, v in RECEIPT.items() if k != "timestamp"}),
        ("receipt.processingTimeMillis", "", REDUCED),
        ("receipt.action.type", "", REDUCED),
        ("receipt.action.topicArn", "", REDUCED),
        ("receipt.action.objectKeyPrefix", "", REDUCED),
        *(
            (f"receipt.{v}", "receipt", {k: x for k, x in RECEIPT.items() if k != v})
            for v in notification.VERDICTS
        ),
        *(
            (f"receipt.{v}.status", "receipt", {k: x for k, x in RECEIPT.items() if k != v})
            for v in notification.VERDICTS
        ),
    ],
)
def test_an_optional_field_is_absent(path: str, place: str, left: dict[str, Any]) -> None:
    email = json.loads(notification.parse(with_(path, ABSENT)).execution_input())
    assert (email[place] if place else email) == left


@pytest.mark.parametrize(
    ("path", "value", "reduced"),
    [
        ("receipt.dmarcPolicy", "reject", "reject"),
        ("receipt.dmarcPolicy", "Quarantine", "quarantine"),
        ("receipt.dmarcPolicy", {"status": "REJECT"}, "reject"),
        ("receipt.dmarcPolicy", {"status": 7}, ABSENT),
        ("receipt.dmarcPolicy", {}, ABSENT),
        ("receipt.dmarcPolicy", ["reject"], ABSENT),
        ("receipt.dmarcPolicy", None, ABSENT),
        ("receipt.dmarcPolicy", 7, ABSENT),
        ("receipt.spamVerdict", {"status": "GRAY"}, {"status": "GRAY"}),
        ("receipt.spamVerdict", {"status": "FAIL", "more": 1}, {"status": "FAIL"}),
        ("receipt.spamVerdict", "FAIL", ABSENT),
        ("receipt.spamVerdict", {"status": None}, ABSENT),
        ("mail.timestamp", 1795514400, ABSENT),
        ("mail.timestamp", "", ABSENT),
        ("mail.source", None, ""),
        ("mail.source", "<>", "<>"),
        ("mail.source", "evil\r\n@x", ""),
    ],
)
def test_what_an_odd_field_becomes(path: str, value: Any, reduced: Any) -> None:
    email = json.loads(notification.parse(with_(path, value)).execution_input())
    section, name = path.split(".")
    assert email[section].get(name, ABSENT) == reduced


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ('{"mail": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[]", "a JSON list is not a notification"),
        ("7", "a JSON int is not a notification"),
        ("null", "a JSON NoneType is not a notification"),
        (b"{}", "a JSON bytes is not a notification"),
        ("{}", "`mail` or `receipt` is missing"),
        ({"Type": "SubscriptionConfirmation", "Message": "{}"}, "`mail` or `receipt` is missing"),
        ({"Type": "Notification", "Message": "hello"}, "not JSON"),
        ({"original": "hello", "failure": FAILURE}, "not JSON"),
        (with_("notificationType", "Bounce"), "notificationType is 'Bounce'"),
        (with_("notificationType", None), "notificationType is None"),
        (with_("mail", ABSENT), "`mail` or `receipt` is missing"),
        (with_("mail", []), "`mail` or `receipt` is missing"),
        (with_("receipt", ABSENT), "`mail` or `receipt` is missing"),
        (with_("receipt", "x"), "`mail` or `receipt` is missing"),
        (with_("mail.messageId", ABSENT), "mail.messageId is missing"),
        (with_("mail.messageId", 7), "mail.messageId is missing or not printable text: 7"),
        (with_("mail.messageId", ""), "mail.messageId is missing"),
        (with_("mail.messageId", "a b"), "'a b' is not an SES message id"),
        (with_("mail.messageId", "a" * 65), "is not an SES message id"),
        (with_("mail.messageId", "../../x"), "is not an SES message id"),
        (with_("mail.messageId", "abc\n"), "not printable text"),
        (with_("receipt.recipients", ABSENT), "receipt.recipients is not a list"),
        (with_("receipt.recipients", []), "receipt.recipients is not a list"),
        (with_("receipt.recipients", "a@b.c"), "receipt.recipients is not a list"),
        (with_("receipt.recipients", [7]), "receipt.recipients is missing or not printable"),
        (with_("receipt.recipients", [""]), "receipt.recipients is missing or not printable"),
        (with_("receipt.recipients", ["a\x00@b.c"]), "not printable text"),
        (with_("receipt.recipients", ["\ud800@b.c"]), "not printable text"),
        (
            with_("receipt.recipients", ["a@b.c" * 9000] * 5),
            "5 recipients and redrive have",
        ),
        (with_("receipt.action", ABSENT), "receipt.action is not the S3 action"),
        (with_("receipt.action", None), "receipt.action is not the S3 action"),
        (with_("receipt.action.type", "Lambda"), "receipt.action is not the S3 action"),
        (with_("receipt.action.bucketName", ABSENT), "receipt.action.bucketName is missing"),
        (with_("receipt.action.objectKey", ABSENT), "receipt.action.objectKey is missing"),
        (with_("receipt.action.objectKey", ""), "receipt.action.objectKey is missing"),
        ({**NOTIFICATION, "redrive": "now"}, "redrive is not an object"),
        (redriven(attempt=0), "redrive.attempt 0 is not a positive number"),
        (redriven(attempt=-1), "redrive.attempt -1 is not a positive number"),
        (redriven(attempt=True), "redrive.attempt True is not a positive number"),
        (redriven(attempt="1"), "redrive.attempt '1' is not a positive number"),
        (redriven(attempt=10**6), "is not a positive number"),
        (redriven(recipients=[]), "redrive.recipients is not a list"),
        (redriven(recipients=["x@example.com"]), "['x@example.com'] did not get the email"),
        (redriven(ignoreVerdicts="yes"), "redrive.ignoreVerdicts is neither true nor false"),
        (redriven(force=7), "redrive.force is missing or not printable text: 7"),
        (redriven(force=""), "redrive.force is missing"),
        (redriven(to=""), "redrive.to is missing"),
        (redriven(to=["anna@gmail.com"]), "redrive.to is missing or not printable text"),
        (redriven(to="anna"), "redrive.to 'anna' is not an address"),
        (redriven(more="x" * 250_000), "as a dead letter, which takes 245760"),
        (redriven(more=float("nan")), "redrive is not JSON for an execution"),
        (redriven(more=float("inf")), "redrive is not JSON for an execution"),
    ],
)
def test_refusals(body: object, reason: str) -> None:
    with pytest.raises(InvalidNotificationError, match=re.escape(reason)):
        notification.parse(json.dumps(body) if isinstance(body, dict) else body)


def test_endless_wrapping_is_refused() -> None:
    body: object = NOTIFICATION
    for _ in range(11):
        body = {"original": body}
    with pytest.raises(InvalidNotificationError, match="wrapped more than 10 times"):
        notification.parse(body)


@pytest.mark.parametrize("depth", [10, 200, 900, 990, 5000])
def test_deep_nesting_is_taken_or_refused(depth: int) -> None:
    body = json.dumps(redriven(more=0))
    try:
        notification.parse(body.replace('"more": 0', f'"more": {"[" * depth}{"]" * depth}'))
    except InvalidNotificationError:
        assert depth > 200


@pytest.mark.parametrize(
    ("redrive", "kept"),
    [
        ({}, {"attempt": 1, "recipients": RECIPIENTS}),
        ({"attempt": 3}, {"attempt": 3, "recipients": RECIPIENTS}),
        (
            {"recipients": ["INFO@example.com"]},
            {"attempt": 1, "recipients": ["INFO@example.com"]},
        ),
        (
            {"ignoreVerdicts": True},
            {"attempt": 1, "recipients": RECIPIENTS, "ignoreVerdicts": True},
        ),
        ({"force": "again"}, {"attempt": 1, "recipients": RECIPIENTS, "force": "again"}),
        (
            {"to": "Anna+x@Gmail.com"},
            {"attempt": 1, "recipients": RECIPIENTS, "to": "anna@gmail.com"},
        ),
        ({"note": "new"}, {"attempt": 1, "recipients": RECIPIENTS, "note": "new"}),
    ],
)
def test_redrive(redrive: dict[str, Any], kept: dict[str, Any]) -> None:
    assert notification.parse(redriven(**redrive)).redrive == kept
    assert notification.parse({**NOTIFICATION, "redrive": None}).redrive is None


def long(count: int, **redrive: Any) -> dict[str, Any]:
    """An email to that many recipients of 104 characters each."""
    recipients = [f"{n:04}{'x' * 88}@example.com" for n in range(count)]
    return {**with_("receipt.recipients", recipients), **({"redrive": redrive} if redrive else {})}


def test_what_is_taken_once_is_taken_at_each_redrive() -> None:
    def is_taken(body: dict[str, Any]) -> bool:
        try:
            return bool(notification.parse(body))
        except InvalidNotificationError:
            return False

    taken = [count for count in range(700, 800) if is_taken(long(count))]
    assert taken[0] == 700
    recipients = long(taken[-1])["receipt"]["recipients"]
    for redrive in ({"attempt": 1}, {"attempt": 999_999, "recipients": recipients}):
        assert is_taken(long(taken[-1], **redrive))
    assert not is_taken(long(taken[-1] + 1, attempt=1))
    assert is_taken(long(900, recipients=recipients[:400]))


def test_the_longest_dead_letter_fits_into_the_arguments_of_park() -> None:
    email = notification.parse(long(700))
    failure: Failure = {
        "action": "forward-to-gmail",
        "target": "x" * 320,
        "matchedRule": "\U0001f4e7" * 1000,
        "error": "x" * 256,
        "cause": "\U0001f4e7" * CAUSE_LENGTH,
        "executionArn": "x" * 256,
        "at": "2026-11-24T10:00:00.000Z",
    }
    letter = dead_letters.letter(*email, failure)
    text = json.dumps(letter, ensure_ascii=False, separators=(",", ":"))
    assert dead_letters.length(*email) <= dead_letters.LETTER_LENGTH
    assert len(text.encode()) + 2000 < 256 * 1024  # queue, attributes


def test_the_set_up_message_is_no_email() -> None:
    email = notification.parse(with_("mail.messageId", "AMAZON_SES_SETUP_NOTIFICATION"))
    assert email.is_setup
    bare = {"mail": {"messageId": "AMAZON_SES_SETUP_NOTIFICATION"}, "receipt": {}}
    assert notification.parse(bare).is_setup


def names(body: dict[str, Any]) -> list[str]:
    return notification.parse(body).execution_names()


def test_the_first_name_is_the_message_id() -> None:
    first, second = names(NOTIFICATION)
    assert first == MESSAGE_ID
    assert re.fullmatch(rf"{MESSAGE_ID}-0-[0-9a-f]{{8}}", second)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (RECIPIENTS, RECIPIENTS[::-1], True),
        (RECIPIENTS, ["ANNA+news@Example.com", "info@example.com"], True),
        (RECIPIENTS, [*RECIPIENTS, RECIPIENTS[0]], True),
        (RECIPIENTS, RECIPIENTS[:1], False),
    ],
    ids=["order", "case", "repetition", "other recipients"],
)
def test_names_depend_on_the_recipients_alone(one: list[str], other: list[str], same: bool) -> None:
    """An SQS or SNS envelope differs per delivery; what it is about does not."""
    for change in (
        lambda r: with_("receipt.recipients", r),
        lambda r: {
            **with_("receipt.recipients", RECIPIENTS),
            "redrive": {"attempt": 1, "recipients": r},
        },
    ):
        first, second = change(one), change(other)
        assert (names(first) == names(second)) is same
        existing = notification.parse(first).execution_input()
        assert notification.parse(second).same_delivery(existing) is same


@pytest.mark.parametrize(
    "redrive",
    [
        {"attempt": 2},
        {"force": "x"},
        {"ignoreVerdicts": True},
        {"to": "anna@gmail.com"},
        {"note": "x"},
    ],
)
def test_another_redrive_is_another_execution(redrive: dict[str, Any]) -> None:
    first = redriven(attempt=1, recipients=RECIPIENTS)
    second = redriven(**{"attempt": 1, "recipients": RECIPIENTS, **redrive})
    assert names(first) != names(second)
    existing = notification.parse(first).execution_input()
    assert not notification.parse(second).same_delivery(existing)
    assert not notification.parse(NOTIFICATION).same_delivery(existing)


@pytest.mark.parametrize("body", [NOTIFICATION, redriven(attempt=12), redriven(force="x")])
def test_a_name_tells_the_email(body: dict[str, Any]) -> None:
    assert {notification.message_id_of(name) for name in names(body)} == {MESSAGE_ID}


def test_the_longest_names_fit() -> None:
    body = {
        **with_("mail.messageId", "a" * 64),
        "redrive": {"attempt": 999_999, "recipients": RECIPIENTS},
    }
    assert [len(name) for name in names(body)] == [80]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
PATHS = [
    "notificationType",
    "mail",
    "mail.messageId",
    "mail.source",
    "mail.timestamp",
    "receipt",
    "receipt.recipients",
    "receipt.timestamp",
    "receipt.spamVerdict",
    "receipt.dmarcPolicy",
    "receipt.action",
    "receipt.action.type",
    "receipt.action.bucketName",
    "receipt.action.objectKey",
    "redrive",
    "redrive.attempt",
    "redrive.recipients",
    "redrive.ignoreVerdicts",
    "redrive.force",
    "redrive.to",
    "redrive.more",
    "original",
    "Type",
    "Message",
]


def parsed_or_refused(body: object) -> None:
    try:
        email = notification.parse(body)
    except InvalidNotificationError:
        return
    if not email.is_setup:
        for name in email.execution_names():
            assert re.fullmatch(r"[0-9A-Za-z_-]{1,80}", name)
        assert email.same_delivery(email.execution_input())

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        json.loads(email.execution_input(), parse_constant=refuse)


@given(JSON, st.sampled_from([json.dumps, lambda x: x]))
def test_any_json_is_parsed_or_refused(value: Any, shape: Callable[[Any], Any]) -> None:
    parsed_or_refused(shape(value))


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    parsed_or_refused(text)


@given(st.sampled_from(PATHS), JSON)
def test_any_field_may_hold_anything(path: str, value: Any) -> None:
    base = redriven(attempt=1, recipients=RECIPIENTS[:1])
    parsed_or_refused(json.dumps(with_(path, value, base)))
