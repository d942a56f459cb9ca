"""Every state and every transition of the state machine's file was run by some test of the folder.

Comes last (conftest.py) and needs the folder's other tests.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Record
from .kit import Post, Step, definition, states_of, steps_of

DEFINITION = definition(ROOT)


def untaken(
    machine: Mapping[str, Any], entered: Collection[str], taken: Collection[Step]
) -> set[str]:
    """What of the state machine was not run, as sentences."""
    states = {f"{state} was not entered" for state in states_of(machine) - set(entered)}
    steps = {
        f"{step.state} did not lead to {step.next}{' by its Catch' if step.caught else ''}"
        for step in steps_of(machine) - set(taken)
    }
    return states | steps


def test_all_paths_were_run(request: pytest.FixtureRequest, record: Record) -> None:
    folder = Path(__file__).parent
    run = {item.path for item in request.session.items}
    left_out = sorted(path.name for path in folder.glob("test_*.py") if path not in run)
    if left_out:
        pytest.skip(f"only the whole folder runs every path; left out: {', '.join(left_out)}")
    assert untaken(DEFINITION, record.states, record.steps) == set()
    assert record.steps <= steps_of(DEFINITION)


def test_a_path_that_was_not_run_is_missed(post: Post) -> None:
    run = post.delivered(post.send(post.address("store")))
    missing = untaken(DEFINITION, run.entered, run.steps)
    states, steps = states_of(DEFINITION), steps_of(DEFINITION)
    assert missing == untaken(DEFINITION, [], []) - {
        *(
            f"{state} was not entered"
            for state in (
                *("Fetch email", "Safe to deliver?", "Look up routes", "For each delivery"),
                *("Which action?", "Store", "All delivered?", "Delivered"),
            )
        ),
        "Fetch email did not lead to Safe to deliver?",
        "Safe to deliver? did not lead to Look up routes",
        "Look up routes did not lead to For each delivery",
        "Which action? did not lead to Store",
        "For each delivery did not lead to All delivered?",
        "All delivered? did not lead to Delivered",
    }
    assert len(missing) == len(states) - 8 + len(steps) - 6


@pytest.mark.parametrize("step", sorted(steps_of(DEFINITION), key=str), ids=str)
def test_each_single_transition_is_missed(step: Step) -> None:
    (missing,) = untaken(DEFINITION, states_of(DEFINITION), steps_of(DEFINITION) - {step})
    assert missing.startswith(f"{step.state} did not lead to {step.next}")
