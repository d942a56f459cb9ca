"""Template, state machine, code and events agree on every name, error, variable and right."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.template.contract import CHECKS, FUNCTIONS, Project, worst_history

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> Project:
    return Project(ROOT)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_promise_holds(check: Callable[[Project], list[str]], project: Project) -> None:
    assert check(project) == []


def test_history_of_the_worst_email_is_what_we_think(project: Project) -> None:
    # Not only under the limit: a change that moves it deserves a look.
    assert 15_000 < worst_history(project) < 24_000


@pytest.mark.parametrize("module", FUNCTIONS.values())
def test_every_function_has_its_test(module: str) -> None:
    assert (ROOT / f"tests/functions/test_{module}.py").is_file()
