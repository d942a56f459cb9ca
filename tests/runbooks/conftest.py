"""One embedded cloud for the folder, and the count of the blocks that were run."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.cloud import Cloud
from local.faults import Faults
from local.iam import ACCOUNT
from tests.workflow.kit import Post

from . import forked, scenes
from .blocks import Terminal, outside
from .cases import World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def cloud() -> Iterator[Cloud]:
    with Cloud(ROOT, time_factor=0.002, faults=Faults()) as running:
        running.runtime.prewarm()
        yield running


@pytest.fixture(scope="package")
def programs(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `aws` and `sesmail` are served."""
    folder = tmp_path_factory.mktemp("programs")
    # Nothing that an import in this process has set, or the server would take it for its caller's.
    environment = outside(cloud) | {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'functions'}",
    }
    with forked.serving(folder, environment):
        yield folder


@pytest.fixture
def world(cloud: Cloud, programs: Path, tmp_path: Path) -> Iterator[World]:
    """Starts without rules and letters, with the pipe running."""
    world = World(
        cloud,
        Post(cloud),
        Terminal(cloud, tmp_path, programs),
        names={"account-id": ACCOUNT, "environment": cloud.environment},
    )
    yield world
    cloud.faults.heal()
    cloud.google.faults.clear()
    cloud.google.person = ""
    cloud.gate.open()
    cloud.pipe.resume()
    cloud.wait_idle()
    scenes.empty_queues(world)
    scenes.forget_rules(world)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many blocks of each runbook were run, as written or changed, and how many were not."""
    counts: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        properties = dict(report.user_properties)
        if report.when == "call" and "block" in properties:
            counts.setdefault(str(properties["runbook"]), Counter())[str(properties["block"])] += 1
    for runbook, count in counts.items():
        run = count["as written"] + count["changed"]
        terminalreporter.write_line(
            f"{runbook}: {count.total()} blocks, {run} executed ({count['changed']} of them "
            f"changed as the runbook lists), {count['marked']} marked as not executable"
        )
