"""The shapes of payloads.py are those of the state machine's file and of the sample events."""

import ast
import json
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NotRequired, get_args, get_origin, get_type_hints

import pytest
import yaml
from ses_mail import dead_letters, notification, payloads

ROOT = Path(__file__).parents[2]
DEFINITION = yaml.safe_load((ROOT / "statemachines" / "process_email.asl.yaml").read_text())
TASKS = {
    "Fetch email": payloads.FetcherPayload,
    "Look up routes": payloads.RouterPayload,
    "Forward to Gmail": payloads.ForwarderPayload,
    "Send bounce": payloads.BouncerPayload,
}


def differences(value: Any, kind: Any, path: str = "") -> list[str]:
    """Where a JSON value is not of the kind."""
    origin = get_origin(kind)
    if origin is NotRequired:
        return differences(value, get_args(kind)[0], path)
    if origin is list:
        if not isinstance(value, list):
            return [f"{path} is not a list"]
        (item,) = get_args(kind)
        return [d for n, v in enumerate(value) for d in differences(v, item, f"{path}[{n}]")]
    if origin is Literal:
        return [] if value in get_args(kind) else [f"{path} is {value!r}"]
    if isinstance(kind, UnionType):
        found = [differences(value, one, path) for one in get_args(kind)]
        return [] if [] in found else found[0]
    if hasattr(kind, "__required_keys__"):
        if not isinstance(value, dict):
            return [f"{path} is not an object"]
        hints = get_type_hints(kind, include_extras=True)
        absent = [f"{path}.{name} is absent" for name in kind.__required_keys__ - set(value)]
        unknown = [f"{path}.{name} is unknown" for name in set(value) - set(hints)]
        inner = [
            difference
            for name in set(value) & set(hints)
            for difference in differences(value[name], hints[name], f"{path}.{name}")
        ]
        return absent + unknown + inner
    return [] if type(value) is kind else [f"{path} is {value!r}, not {kind.__name__}"]


def states(machine: dict[str, Any]) -> dict[str, Any]:
    found = dict(machine["States"])
    for state in machine["States"].values():
        if "ItemProcessor" in state:
            found |= states(state["ItemProcessor"])
    return found


@pytest.mark.parametrize("name", TASKS)
def test_state_sends_the_shape(name: str) -> None:
    sent = states(DEFINITION)[name]["Arguments"]["Payload"]
    assert set(sent) == set(get_type_hints(TASKS[name]))


def test_park_writes_the_dead_letter() -> None:
    """As the sweeper does: same fields, and none absent."""
    body = states(DEFINITION)["Park"]["Arguments"]["MessageBody"]
    assert set(body) == set(get_type_hints(payloads.DeadLetter))
    assert set(body["failure"]) == set(get_type_hints(payloads.Failure))
    email = notification.parse((ROOT / "events" / "ses-notification.json").read_text())
    failure: payloads.Failure = {"action": "execution", "error": "E", "cause": "", "at": ""}
    letter = dead_letters.letter(*email, failure)
    assert set(letter) == set(body)
    assert differences(letter, payloads.DeadLetter) == []


@pytest.mark.parametrize(
    ("event", "shape"),
    [
        ("fetcher", payloads.FetcherPayload),
        ("router", payloads.RouterPayload),
        ("gmail_forwarder", payloads.ForwarderPayload),
        ("bouncer", payloads.BouncerPayload),
    ],
)
def test_sample_event_has_the_shape(event: str, shape: type) -> None:
    assert differences(json.loads((ROOT / "events" / f"{event}.json").read_text()), shape) == []


def test_starter_writes_the_shape() -> None:
    bodies = [r["body"] for r in json.loads((ROOT / "events" / "starter.json").read_text())]
    for body in bodies:
        written = json.loads(notification.parse(body).execution_input())
        assert differences(written, payloads.ExecutionInput) == []
    assert differences(json.loads(bodies[1]), payloads.DeadLetter) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messageId": "m"}, [".source is absent"]),
        ({"messageId": "m", "source": "", "more": 1}, [".more is unknown"]),
        ({"messageId": 1, "source": ""}, [".messageId is 1, not str"]),
    ],
)
def test_differences_are_found(value: Any, expected: list[str]) -> None:
    assert differences(value, payloads.Mail) == expected


def test_public_signatures_name_their_shapes() -> None:
    """JSON that others wrote may be a Mapping or `tables.Item`; what we make has a name."""
    unnamed = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sorted((ROOT / "functions").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        for annotation in [node.returns, *(a.annotation for a in node.args.args)]
        if annotation and "dict[str, Any]" in ast.unparse(annotation)
    ]
    assert unnamed == []
