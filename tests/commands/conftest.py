"""One embedded cloud for the folder, and `sesmail` run against it."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from local.cloud import Cloud
from local.iam import REGION
from tests.workflow.kit import Post

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Ran:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object that was printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The objects of a list, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Sesmail = Callable[..., Ran]


@pytest.fixture(scope="package")
def cloud() -> Iterator[Cloud]:
    with Cloud(ROOT, time_factor=0.002) as running:
        running.runtime.prewarm()
        yield running


@pytest.fixture
def sesmail(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sesmail:
    """Run a command line in this process, without a terminal; a wrong exit code fails the test,
    unless it is None."""
    for name in ("AWS_PROFILE", "SESMAIL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.aws_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "operator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str, *more: str, code: int | None = 0) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(line), *more])
        captured = capsys.readouterr()
        ran = Ran(int(ended.value.code or 0), captured.out, captured.err)
        assert code is None or ran.code == code, ran
        return ran

    return run


@pytest.fixture
def post(cloud: Cloud) -> Iterator[Post]:
    """Emails with addresses of their own; leaves no letter and no fault behind.

    No event goes round: with a new token mail would be redriven before the command can do it.
    """
    cloud.events.paused = True
    yield Post(cloud)
    cloud.google.faults.clear()
    cloud.gate.open()
    cloud.pipe.resume()
    cloud.wait_idle(120)
    Post(cloud).take()
    cloud.events.paused = False
