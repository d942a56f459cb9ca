"""Keys outlive releases: what is written today is looked for in 90 days."""

from typing import Any

import pytest
import yaml
from ses_mail import delivery_keys as keys

from tests.fixtures import ROOT

KEYS = [
    (keys.forward("m1", "anna@x.example"), "EMAIL#m1", "FORWARD#anna@x.example"),
    (keys.forward("m1", "anna@x.example", "n0"), "EMAIL#m1", "FORWARD#anna@x.example#n0"),
    (keys.bounce("m1", "a@x.example"), "EMAIL#m1", "BOUNCE#a@x.example"),
    (keys.bounce("m1", "a@x.example", "n0"), "EMAIL#m1", "BOUNCE#a@x.example#n0"),
    (keys.parked("m1", "m1-1-0a0b0c0d"), "EMAIL#m1", "PARKED#m1-1-0a0b0c0d"),
    (keys.bounce_count("a@x.example", "2026-11-24T10"), "SENDER#a@x.example", "HOUR#2026-11-24T10"),
    (keys.token_check("/p"), "TOKEN#/p", "CHECK"),
]


@pytest.mark.parametrize(("key", "partition", "sort"), KEYS, ids=[k[2] for k in KEYS])
def test_what_lies_where(key: keys.Key, partition: str, sort: str) -> None:
    assert key == {"PK": partition, "SK": sort}


@pytest.mark.parametrize("mailbox", ["anna@x.example", "a#b@x.example", '"a@#"@x.example'])
@pytest.mark.parametrize("force", ["", "9f0c"])
def test_a_mailbox_is_found_in_its_key(mailbox: str, force: str) -> None:
    assert keys.mailbox_of(keys.forward("m1", mailbox, force)["SK"]) == mailbox


@pytest.mark.parametrize(
    ("sort_key", "mailbox", "execution"),
    [
        (keys.forward("m1", "a@x.example")["SK"], "a@x.example", ""),
        (keys.bounce("m1", "a@x.example")["SK"], "", ""),
        (keys.parked("m1", "m1-1-0a0b0c0d")["SK"], "", "m1-1-0a0b0c0d"),
        ("CHECK", "", ""),
    ],
)
def test_only_a_record_of_that_kind_says_it(sort_key: str, mailbox: str, execution: str) -> None:
    assert (keys.mailbox_of(sort_key), keys.execution_of(sort_key)) == (mailbox, execution)


def test_the_state_machine_writes_the_mark_that_the_sweeper_looks_for() -> None:
    definition = yaml.safe_load((ROOT / "statemachines/process_email.asl.yaml").read_text())
    (put,) = (s for s in _states(definition) if s.get("Resource", "").endswith(":putItem"))
    item: dict[str, Any] = put["Arguments"]["Item"]
    message_id = "{% $states.context.Execution.Input.mail.messageId %}"
    name = "{% $states.context.Execution.Name %}"
    assert {n: _plain(item[n]["S"]) for n in ("PK", "SK")} == keys.parked(message_id, name)


def _states(definition: dict[str, Any]) -> list[dict[str, Any]]:
    found = list(definition["States"].values())
    return found + [
        inner for s in found if "ItemProcessor" in s for inner in _states(s["ItemProcessor"])
    ]


def _plain(expression: str) -> str:
    """`{% 'PREFIX' & $variable %}` as the text PREFIX{% $variable %}."""
    prefix, _, rest = expression.removeprefix("{% '").partition("' & ")
    return f"{prefix}{{% {rest}"
