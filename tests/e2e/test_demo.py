"""`make demo`, run as a person runs it; and broken on purpose, it must say so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local.demo import CASES
from tests.mutants import copy_of_project

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def demo(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "local.demo", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_email_has_its_row_and_the_expected_outcome() -> None:
    done = demo(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for case in CASES:
        assert case.title in done.stdout
    for heading in ("Mailboxes", "Bounces", "Dead letters", "Execution ", "Forwarder process:"):
        assert heading in done.stdout
    assert f"All {len(CASES)} outcomes are as expected." in done.stdout


MUTANTS = [
    # (file, text, replacement, what the demo must notice)
    ("functions/ses_mail/addresses.py", 'local.partition("+")', 'local.partition("~")', "+tag"),
    ("functions/ses_mail/bounce_policy.py", '!= "no"', '== "never"', "auto-reply"),
]


def test_a_broken_workflow_makes_the_demo_fail(tmp_path: Path) -> None:
    """Broken in three places that have nothing to do with each other; it must name each."""
    root = copy_of_project(tmp_path)
    for file, text, replacement, _ in MUTANTS:
        source = (root / file).read_text()
        assert text in source
        (root / file).write_text(source.replace(text, replacement))
    path = root / "statemachines/process_email.asl.yaml"
    before, _, rest = path.read_text().partition("        Forward to Gmail:\n")
    task, _, after = rest.partition("          Catch:\n")
    _, _, after = after.partition("          End: true\n")
    path.write_text(f"{before}        Forward to Gmail:\n{task}          End: true\n{after}")
    done = demo(root)
    assert done.returncode == 1, done.stdout + done.stderr
    for noticed in (*(mutant[-1] for mutant in MUTANTS), "token revoked"):
        assert f"not as expected: {noticed}" in done.stdout


def test_an_email_of_ones_own() -> None:
    done = demo(
        ROOT,
        *("--email", "events/hello.eml", "--sender", "me@elsewhere.example"),
        *("--recipients", "hello@example.com,nobody@example.com"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "delivered" in done.stdout
    assert "me@elsewhere.example" in done.stdout  # got the bounce


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--email", "missing.eml", "--recipients", "a@example.com"], "is no file"),
        (["--email", "events/hello.eml"], "RCPT names nobody"),
    ],
)
def test_a_wrong_call_is_told_so(arguments: list[str], complaint: str) -> None:
    done = demo(ROOT, *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
