"""`make mutants` and `make soak-mutants` change what they say: no class of changes is gone, each
change can be read, and each test that should notice is there."""

import random
from pathlib import Path

import pytest

from local.account import CHECKS
from tests import mutants
from tests.e2e import soak_mutants
from tests.mutation.source import Mutant

ROOT = Path(__file__).parents[2]
FOUND = mutants.mutants()

# What each kind of file must be changed in.
KINDS = {
    "template.yaml": {
        *("policy", "permission", "condition", "event", "life cycle", "order", "default"),
        *("output", "name", "number", "property", "swapped", "word", "item"),
    },
    "monitoring.yaml": {
        *("alarm", "dashboard", "log field", "metric", "name", "number", "query", "word"),
    },
    "statemachines": {
        *("Catch", "Choices", "Retry", "constant", "entry", "number", "operator"),
        *("text", "transition"),
    },
    "functions": {
        *("branch", "call", "comparison", "deliveries", "flag", "log field", "logic"),
        *("metric", "number", "privacy", "sequence", "word"),
    },
    "cli": {"branch", "call", "comparison", "exit code", "logic", "number", "sequence", "word"},
    "runbooks": {"branch", "call", "comparison", "logic", "number"},
}


def of(area: str) -> list[Mutant]:
    return [mutant for mutant in FOUND if mutants._area(mutant) == area]


@pytest.mark.parametrize("area", KINDS)
def test_every_class_is_changed(area: str) -> None:
    assert KINDS[area] <= {mutant.kind for mutant in of(area)}


@pytest.mark.parametrize("area", KINDS)
def test_a_change_can_be_read_and_says_something_else(area: str) -> None:
    for mutant in random.Random(area).sample(of(area), 20):
        assert mutants.is_sound(mutant, (ROOT / mutant.file).read_text()), mutant.id


def test_ids_tell_mutants_apart() -> None:
    assert len({mutant.id for mutant in FOUND}) == len(FOUND)


def test_tests_that_should_notice_are_there() -> None:
    named = {test.partition("::")[0] for mutant in FOUND for test in mutant.tests}
    assert [test for test in sorted(named) if not (ROOT / test).exists()] == []


@pytest.mark.parametrize("mutant", soak_mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_soak_mutant_is_up_to_date(mutant: soak_mutants.Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert mutant.old in text
    if mutant.file.endswith(".py"):
        compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert set(mutant.noticed_by) <= set(CHECKS)
