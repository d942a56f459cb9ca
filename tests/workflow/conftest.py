"""One embedded cloud for the folder, and the record of every path that its tests took."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.cloud import Cloud

from .kit import Post, Step

# Real seconds per second of the cloud, and parameters of its template; a module with constants of
# these names gets its own cloud.
TIME_FACTOR = 0.002
PARAMETERS: dict[str, str] = {}

ROOT = Path(__file__).parent.parent.parent
_LAST = "test_every_path.py"


class Record:
    """What all executions so far went through; told apart by ARN, each is read once."""

    def __init__(self) -> None:
        self.states: set[str] = set()
        self.steps: set[Step] = set()
        self._seen: set[str] = set()

    def add(self, post: Post) -> None:
        for execution in post.cloud.executions():
            if execution["executionArn"] not in self._seen:
                self._seen.add(execution["executionArn"])
                run = post.read(execution)
                self.states.update(run.entered)
                self.steps.update(run.steps)


class _Holder:
    """The running cloud: one per process is all that moto allows."""

    def __init__(self) -> None:
        self.cloud: Cloud | None = None
        self._made_of: tuple[float, dict[str, str]] | None = None

    def get(self, factor: float, parameters: dict[str, str]) -> Cloud:
        if self.cloud is None or self._made_of != (factor, parameters):
            self.stop()
            self.cloud = Cloud(ROOT, time_factor=factor, parameters=parameters)
            self._made_of = factor, parameters
            self.cloud.start()
            # What the workflow itself leaves behind is looked at here, before any sweeper.
            self.cloud.events.paused = True
            self.cloud.runtime.prewarm()
        return self.cloud

    def stop(self) -> None:
        if self.cloud is not None:
            self.cloud.stop()
            self.cloud = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at all that the others did comes last; modules with a cloud of their own come
    first, so that the others share one."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        module: Any = item.getparent(pytest.Module)
        return item.path.name == _LAST, not hasattr(module.obj, "TIME_FACTOR")

    here = Path(__file__).parent
    ours = iter(sorted((item for item in items if item.path.parent == here), key=place))
    items[:] = [next(ours) if item.path.parent == here else item for item in items]


@pytest.fixture(scope="session")
def record() -> Record:
    return Record()


@pytest.fixture(scope="package")
def _holder() -> Iterator[_Holder]:
    holder = _Holder()
    yield holder
    holder.stop()


@pytest.fixture(scope="module")
def cloud(request: pytest.FixtureRequest, _holder: _Holder) -> Cloud:
    module = request.module
    return _holder.get(
        getattr(module, "TIME_FACTOR", TIME_FACTOR), getattr(module, "PARAMETERS", PARAMETERS)
    )


@pytest.fixture(scope="module")
def post(cloud: Cloud, record: Record) -> Iterator[Post]:
    """Leaves no message in a dead-letter queue and no fault behind."""
    yield Post(cloud)
    record.add(Post(cloud))


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "post" in request.fixturenames:
        post: Post = request.getfixturevalue("post")
        post.cloud.google.faults.clear()
        post.cloud.gate.open()
        post.cloud.wait_idle()
        post.take()
