"""The errors that Step Functions matches by name."""

import inspect
from typing import Any

import pytest
from ses_mail import errors, observe

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and value.__module__ == errors.__name__ and value.__name__[0] != "_"
]


def test_these_names_stand_in_running_executions_and_never_change() -> None:
    assert {c.__name__ for c in CLASSES} == {
        "InvalidNotificationError",
        "EmailNotFoundError",
        "InvalidRoutingRuleError",
        "GmailTokenError",
        "GmailRejectedError",
        "GmailTemporaryError",
        "DeliveryInProgressError",
        "BounceRejectedError",
        "BounceThrottledError",
    }


@pytest.mark.parametrize("error", CLASSES)
def test_one_class_per_reaction(error: type[Exception]) -> None:
    assert error.__subclasses__() == [], "flat: Step Functions knows no inheritance"
    assert error.__name__ in (errors.__doc__ or "")
    assert str(error("what happened")) == "what happened"
    assert error("what happened").code == error.__name__  # type: ignore[attr-defined]
    assert error("what happened", "invalid_grant").code == "invalid_grant"  # type: ignore[call-arg,attr-defined]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain ümläut 漢字", "plain ümläut 漢字"),
        ("line\r\nbreak\tand\x00NUL\x1b[31m", "line  break and NUL [31m"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("no \ufffe\uffff in SQS", "no    in SQS"),
        ("x" * 5000, "x" * 1000),
        ("\ud800" * 2000, "?" * 1000),
        ("", ""),
    ],
    ids=["text", "controls", "surrogate", "non-characters", "long", "long and broken", "empty"],
)
def test_messages_fit_into_a_cause_and_a_queue(text: str, clean: str) -> None:
    assert str(errors.GmailRejectedError(text)) == clean


def test_no_error_leaves_a_task_with_what_sqs_refuses(context: Any, logs: Any) -> None:
    @observe.task
    def fails(_event: Any, _context: Any) -> None:
        raise LookupError("\ufffe\uffff\ud800 \x00 fine", 3)

    with pytest.raises(LookupError) as raised:
        fails({"messageId": "m", "executionArn": "e"}, context)
    assert raised.value.args == ("  ?   fine", 3)
