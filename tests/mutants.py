"""`make mutants`: changes what the files promise, one thing after the other, and runs the tests.

Mutants are read off the files themselves: templates, state machine, Python, the documents' scripts
(tests/mutation). Each must make one of the tests that should notice fail.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.mutation import python, state_machine, templates
from tests.mutation.exceptions import EXCEPTIONS
from tests.mutation.source import ROOT, Mutant

MINUTES = 300.0


def mutants() -> list[Mutant]:
    """All that must be noticed."""
    found = [*state_machine.mutants(), *templates.mutants(), *python.mutants()]
    times: Counter[str] = Counter()
    numbered = []
    for mutant in found:
        times[mutant.id] += 1
        number = f" ({times[mutant.id]})" if times[mutant.id] > 1 else ""
        numbered.append(mutant._replace(what=f"{mutant.what}{number}"))
    stale = [e for e in EXCEPTIONS if not any(re.search(e, m.id) for m in numbered)]
    assert not stale, f"exceptions for what is no mutant: {stale}"
    return [m for m in numbered if not any(re.search(e, m.id) for e in EXCEPTIONS)]


def chosen(found: list[Mutant], given: argparse.Namespace) -> list[Mutant]:
    """Those that were asked for: of some kinds or files, or a sample with some of each kind."""
    kinds = {kind for kind in given.kind.split(",") if kind}
    found = [m for m in found if given.only in f"{m.file} {m.id}"]
    found = [m for m in found if not kinds or m.kind in kinds]
    if not given.sample or given.sample >= len(found):
        return found
    chance = random.Random(given.seed)
    groups: dict[tuple[str, str], list[Mutant]] = {}
    for mutant in found:
        groups.setdefault((mutant.kind, mutant.file.partition("/")[0]), []).append(mutant)
    share = given.sample / len(found)
    picked = set()
    for group in groups.values():
        picked |= set(chance.sample(group, max(1, round(len(group) * share))))
    return [mutant for mutant in found if mutant in picked]


# -- running the tests -----------------------------------------------------------------------------


def copy_of_project(to: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def preload() -> None:
    """What takes long to import and is none of ours; each run is a fork of this process."""
    import boto3
    import cfnlint.api
    import google.auth
    import googleapiclient.discovery
    import hypothesis
    import moto.server
    import pytest
    import samtranslator.translator.translator

    for backend in ("dynamodb", "s3", "ses", "sns", "sqs", "ssm", "stepfunctions", "awslambda"):
        __import__(f"moto.{backend}")
    _ = (boto3, cfnlint.api, google.auth, googleapiclient.discovery, hypothesis, moto.server)
    _ = (pytest, samtranslator.translator.translator)


def start(folder: Path, tests: tuple[str, ...]) -> int:
    """Run tests of a copy in a process of their own; returns its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(folder)
    # The copy imports its own `tests`.
    sys.path = [
        str(folder) if Path(entry or ".").resolve() == ROOT else entry for entry in sys.path
    ]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    output = os.open(folder / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    import pytest

    code = 99
    try:
        # The linters know AWS's rules, not our promises, and take ten seconds each time.
        linters = any("linters" in test for test in tests)
        quick = ["-m", "not slow", "-k", "" if linters else "not linters"]
        options = ["-x", "-q", *quick, "-p", "no:cacheprovider", "-p", "no:cov"]
        code = int(pytest.main([*options, f"--rootdir={folder}", *tests]))
    finally:
        os._exit(code)


class Outcome(NamedTuple):
    """Whether a mutant was noticed, and what pytest's last line said."""

    noticed: bool
    said: str


def said(folder: Path) -> str:
    lines = (folder / "pytest.log").read_text(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), "")


def changed(mutant: Mutant, text: str) -> str:
    begin, end = mutant.span
    return text[:begin] + mutant.new + text[end:]


def is_sound(mutant: Mutant, text: str) -> bool:
    """Whether the changed file can be read at all, and says something else."""
    new = changed(mutant, text)
    try:
        if mutant.file.endswith(".py"):
            return ast.dump(ast.parse(new)) != ast.dump(ast.parse(text))
        loader = yaml.CSafeLoader
        return _plain(yaml.compose(new, Loader=loader)) != _plain(yaml.compose(text, Loader=loader))
    except (SyntaxError, yaml.YAMLError):
        return False


def _plain(node: yaml.nodes.Node) -> object:
    if isinstance(node, yaml.nodes.MappingNode):
        return [(_plain(key), _plain(value)) for key, value in node.value]
    if isinstance(node, yaml.nodes.SequenceNode):
        return [node.tag, *map(_plain, node.value)]
    return node.tag, node.value


def run(
    found: list[Mutant],
    folders: list[Path],
    patience: dict[tuple[str, ...], float],
    deadline: float,
) -> dict[Mutant, Outcome]:
    """Each mutant in one of the copies; those that the time did not suffice for are absent."""
    outcomes: dict[Mutant, Outcome] = {}
    waiting = list(reversed(found))
    free = list(folders)
    running: dict[int, tuple[Mutant, Path, str, float]] = {}
    while waiting or running:
        while waiting and free and time.monotonic() < deadline:
            mutant, folder = waiting.pop(), free.pop()
            original = (folder / mutant.file).read_text()
            if not is_sound(mutant, original):
                raise SystemExit(f"{mutant.id} cannot be read, or changes nothing")
            (folder / mutant.file).write_text(changed(mutant, original))
            running[start(folder, mutant.tests)] = (mutant, folder, original, time.monotonic())
        if not running:
            break
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.05)
            for late, (mutant, _, _, since) in running.items():
                if time.monotonic() - since > patience[mutant.tests]:
                    os.killpg(late, signal.SIGKILL)
            continue
        mutant, folder, original, _ = running.pop(child)
        (folder / mutant.file).write_text(original)
        free.append(folder)
        outcomes[mutant] = Outcome(status != 0, said(folder))
        print("." if status else f"\nSURVIVED {mutant.id}\n", end="", flush=True)
    print()
    return outcomes


def seconds_of(files: list[str], folders: list[Path]) -> dict[str, float]:
    """How long each file of tests takes without any mutant, which all must survive."""
    taken = {}
    again: set[str] = set()
    waiting, free = list(files), list(folders)
    running: dict[int, tuple[str, Path, float]] = {}
    while waiting or running:
        while waiting and free:
            name, folder = waiting.pop(0), free.pop()
            running[start(folder, (name,))] = (name, folder, time.monotonic())
        child, status = os.wait()
        name, folder, begin = running.pop(child)
        if status and name in again:
            raise SystemExit(f"{name} fails without any mutant: {said(folder)}")
        if status:  # it may be the load; twice is no chance
            again.add(name)
            waiting.append(name)
        taken[name] = time.monotonic() - begin
        print(f"{name}: {'failed' if status else 'passed'}, {taken[name]:.0f} s", flush=True)
        free.append(folder)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose id or file holds this text")
    parser.add_argument("--kind", default="", help="mutants of these kinds, KIND,KIND")
    parser.add_argument("--sample", type=int, default=0, help="so many, some of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most")
    parser.add_argument("--list", action="store_true", help="name them and run nothing")
    parser.add_argument("--verbose", action="store_true", help="say what noticed each")
    given = parser.parse_args()
    found = chosen(mutants(), given)
    if given.list:
        print("\n".join(mutant.id for mutant in found))
        return 0
    started = time.monotonic()
    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        names = [f"copy{number}" for number in range(os.cpu_count() or 1)]
        folders = [copy_of_project(Path(temporary, name)) for name in names]
        sets = {mutant.tests for mutant in found}
        taken = seconds_of(sorted({test for tests in sets for test in tests}), folders)
        # A mutant may hang what it breaks; that is noticed too.
        patience = {tests: 60 + 4 * sum(taken[test] for test in tests) for tests in sets}
        outcomes = run(found, folders, patience, started + given.minutes * 60)
    return report(found, outcomes, given.verbose, time.monotonic() - started)


def report(
    found: list[Mutant], outcomes: dict[Mutant, Outcome], verbose: bool, seconds: float
) -> int:
    """Print killed/total of each kind; returns the exit code."""
    bad = 0
    for mutant in found:
        outcome = outcomes.get(mutant)
        if outcome is None:
            print(f"no time    {mutant.id}")
            bad += 1
        elif not outcome.noticed:
            print(f"survived   {mutant.id}")
            bad += 1
        elif verbose:
            print(f"killed     {mutant.id}\n           {outcome.said}")
    kinds: dict[tuple[str, str], Counter[bool]] = {}
    for mutant in found:
        noticed = mutant in outcomes and outcomes[mutant].noticed
        kinds.setdefault((_area(mutant), mutant.kind), Counter())[noticed] += 1
    for (area, kind), counted in sorted(kinds.items()):
        print(f"{area:15} {kind:12} {counted[True]}/{counted.total()}")
    killed = sum(counted[True] for counted in kinds.values())
    print(f"killed {killed}/{len(found)}, {seconds:.0f} s")
    return 1 if bad else 0


def _area(mutant: Mutant) -> str:
    folder, slash, _ = mutant.file.partition("/")
    return folder if slash else mutant.file


if __name__ == "__main__":
    sys.exit(main())
