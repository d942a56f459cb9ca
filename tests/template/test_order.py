"""In which order CloudFormation creates the stack, on the translated template."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from local.stack import translated

ROOT = Path(__file__).parents[2]
PARAMETERS = {"Environment": "test", "Domains": "example.com"}


@cache
def resources(rule_set: str = "") -> dict[str, Any]:
    given = {**PARAMETERS, **({"ReceiptRuleSet": rule_set} if rule_set else {})}
    return dict(translated(ROOT, "template.yaml", given)["Resources"])


def names(node: Any) -> Iterator[str]:
    """Everything that an expression refers to."""
    if isinstance(node, list):
        for item in node:
            yield from names(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "Ref":
                yield value
            elif key == "Fn::GetAtt":
                yield value[0] if isinstance(value, list) else value.partition(".")[0]
            elif key == "Fn::Sub":
                text, values = (value, {}) if isinstance(value, str) else value
                yield from (name.partition(".")[0] for name in re.findall(r"\${([^}!]+)}", text))
                yield from names(values)
            else:
                yield from names(value)


def before(name: str, rule_set: str = "") -> set[str]:
    """The resources that exist when CloudFormation begins with this one."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        resource = resources(rule_set)[waiting.pop()]
        explicit = resource.get("DependsOn", [])
        explicit = [explicit] if isinstance(explicit, str) else explicit
        needed = {*explicit, *names(resource.get("Properties", {}))} & set(resources(rule_set))
        waiting += needed - found
        found |= needed
    return found


@pytest.mark.parametrize("rule_set", ["", "somebody-elses"])
def test_the_receipt_rule_is_the_last_resource(rule_set: str) -> None:
    # It is live at once, and SES writes into the bucket: what failed behind it could not be undone.
    assert before("ReceiptRule", rule_set) == set(resources(rule_set)) - {"ReceiptRule"}


ORDERS = [
    ("ProcessingSubscription", "InputQueuePolicy", "or the first notifications are refused"),
    ("ProcessingSubscription", "InputDlqPolicy", "or what was refused is gone"),
    ("ReceiptRule", "EmailBucketPolicy", "SES tries to write when the rule is created"),
    ("ReceiptRule", "ProcessingTopicPolicy", "SES tries to publish when the rule is created"),
    ("Pipe", "PipeRole", "a pipe tries its source when it is created"),
    ("Pipe", "PipeLogGroup", "a pipe tries its log group when it is created"),
    ("Pipe", "StarterFunction", "or it hands its first batch to nobody"),
    ("ProcessEmailStateMachine", "ProcessEmailLogGroup", "it is checked when it is created"),
    ("ProcessEmailStateMachine", "ProcessEmailRole", "it is checked when it is created"),
    ("Monitoring", "RouterLogGroup", "the saved queries name it"),
]


@pytest.mark.parametrize(("later", "sooner", "why"), ORDERS)
def test_what_must_be_there_first(later: str, sooner: str, why: str) -> None:
    assert sooner in before(later), why


def test_functions_come_after_their_roles_and_log_groups() -> None:
    functions = [n for n, r in resources().items() if r["Type"] == "AWS::Lambda::Function"]
    assert functions
    for name in functions:
        role, group = (name.replace("Function", kind) for kind in ("Role", "LogGroup"))
        # Or the first call logs into a group that Lambda cannot create.
        assert {role, group} <= before(name)
