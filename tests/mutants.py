"""`make mutants`: takes out what the files promise, one thing after the other, and runs the tests.

Mutants are read off the files themselves: each metric, log field, name of a resource, alarm,
permission, condition of a policy, `Catch` and `Retry`. Each must make one of the tests that should
notice fail. Run as a file, so that the copies import their own `tests`.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ("template.yaml", "monitoring.yaml")
STATE_MACHINE = "statemachines/process_email.asl.yaml"
GONE = "Gone"

MINUTES = 15
# A mutant may hang what it breaks; that is noticed too.
PATIENCE = 120.0

# Mutants that need not be noticed, by their ids, and why.
EXCEPTIONS: dict[str, str] = {}

Node = yaml.nodes.Node
Span = tuple[int, int]


class Mutant(NamedTuple):
    """A span of a file's text, what stands there instead, and the tests that should notice."""

    kind: str
    what: str
    file: str
    span: Span
    new: str
    tests: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.what}"


# -- what can be taken out of YAML -----------------------------------------------------------------


class Yaml:
    """A YAML file with the position of everything in it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.text = (ROOT / file).read_text()
        self.root = yaml.compose(self.text, Loader=yaml.SafeLoader)

    def mappings(
        self, node: Node | None = None, path: tuple[str, ...] = ()
    ) -> Iterator[tuple[tuple[str, ...], yaml.nodes.MappingNode]]:
        """Every mapping with the keys that lead to it."""
        node = node or self.root
        if isinstance(node, yaml.nodes.MappingNode):
            yield path, node
            for key, value in node.value:
                yield from self.mappings(value, (*path, str(key.value)))
        elif isinstance(node, yaml.nodes.SequenceNode):
            for index, value in enumerate(node.value):
                yield from self.mappings(value, (*path, str(index)))

    def text_of(self, node: Node) -> str:
        return self.text[node.start_mark.index : node.end_mark.index]

    def renamed(self, node: Node) -> tuple[Span, str]:
        """A scalar with more at its end."""
        text = self.text_of(node).rstrip()
        end = node.start_mark.index + len(text)
        quote = text[-1] if text[-1] in "\"'" else ""
        return (end - len(quote), end), f"{GONE}{quote}"

    def without_item(self, sequence: yaml.nodes.SequenceNode, index: int) -> tuple[Span, str]:
        """A sequence without one of its items."""
        if len(sequence.value) == 1:
            span = (sequence.start_mark.index, sequence.end_mark.index)
            return span, "[]" if sequence.flow_style else "[]\n" + " " * sequence.end_mark.column
        starts = [item.start_mark.index for item in sequence.value]
        if sequence.flow_style:
            if index + 1 < len(starts):
                return (starts[index], starts[index + 1]), ""
            return (sequence.value[index - 1].end_mark.index, sequence.end_mark.index - 1), ""
        begin = self.text.rfind("-", 0, starts[index])
        if index + 1 < len(starts):
            end = self.text.rfind("-", 0, starts[index + 1])
        else:
            end = sequence.end_mark.index
        return (begin, end), ""

    def without_entry(self, mapping: yaml.nodes.MappingNode, name: str) -> tuple[Span, str]:
        """A block mapping without one of its keys; a resource is left without a trace."""
        keys = [key for key, _ in mapping.value]
        index = next(i for i, key in enumerate(keys) if key.value == name)
        begin = keys[index].start_mark.index
        last = index + 1 == len(keys)
        end = mapping.end_mark.index if last else keys[index + 1].start_mark.index
        return (begin, end), "{}" if len(keys) == 1 else ""


def entry(mapping: yaml.nodes.MappingNode, name: str) -> Node | None:
    return next((value for key, value in mapping.value if key.value == name), None)


def scalars(node: Node | None) -> list[yaml.nodes.ScalarNode]:
    if isinstance(node, yaml.nodes.ScalarNode):
        return [node]
    if isinstance(node, yaml.nodes.SequenceNode):
        return [item for item in node.value if isinstance(item, yaml.nodes.ScalarNode)]
    return []


TEMPLATE_TESTS = (
    "tests/template/test_contract.py",
    "tests/template/test_template.py",
    "tests/template/test_monitoring.py",
)
# Alone: the others lint the templates, which takes longer than all of these.
MONITORING_TESTS = ("tests/template/test_monitoring.py",)


def tests_of_template(file: str) -> tuple[str, ...]:
    return MONITORING_TESTS if file == "monitoring.yaml" else TEMPLATE_TESTS


def of_template(file: str) -> Iterator[Mutant]:
    source = Yaml(file)

    def mutant(kind: str, what: str, change: tuple[Span, str]) -> Mutant:
        return Mutant(kind, f"{file}: {what}", file, *change, tests_of_template(file))

    for path, mapping in source.mappings():
        owner = path[1] if len(path) > 1 else ""
        where = f"{owner} {'.'.join(path[-3:])}"
        if entry(mapping, "Effect"):
            for action in scalars(entry(mapping, "Action")):
                yield mutant("permission", f"{where} {action.value}", source.renamed(action))
            condition = entry(mapping, "Condition")
            if isinstance(condition, yaml.nodes.MappingNode):
                yield mutant(
                    "condition", f"{where} Condition", source.without_entry(mapping, "Condition")
                )
        if path[:1] == ("Resources",) and path[2:] == ("Properties",):
            for key, value in mapping.value:
                if key.value.endswith("Name") and is_name(value):
                    yield mutant("name", f"{owner} {key.value}", source.renamed(value))
        if path[:1] == ("Resources",) and len(path) == 1:
            for key, value in mapping.value:
                kind = entry(value, "Type")
                if kind is not None and kind.value == "AWS::CloudWatch::Alarm":
                    yield mutant(
                        "alarm", f"{key.value} removed", source.without_entry(mapping, key.value)
                    )
        metric = entry(mapping, "MetricName")
        if metric is not None:
            yield mutant("metric", f"{where} {metric.value}", source.renamed(metric))
        for text_key in ("DashboardBody", "QueryString"):
            body = entry(mapping, text_key)
            if body is not None:
                yield from of_text(source, owner, text_key, body)


def is_name(node: Node) -> bool:
    """Whether it is given here: not a reference to another resource's name."""
    return isinstance(node, yaml.nodes.ScalarNode) and node.tag.lower() not in {"!ref", "!getatt"}


# Metrics stand in a dashboard as ["Namespace", "Metric", …]; fields in a query as bare words.
METRIC_IN_BODY = re.compile(r'\[\s*"(?:AWS/|SESMail/)[^"]+",\s*"(?P<name>\w+)"')
FIELD_IN_QUERY = re.compile(r"(?<![\w@/\"'.$-])(?P<name>[a-z]+[A-Z]\w*)(?![\w(])")


def of_text(source: Yaml, owner: str, key: str, body: Node) -> Iterator[Mutant]:
    pattern = METRIC_IN_BODY if key == "DashboardBody" else FIELD_IN_QUERY
    for number, match in enumerate(pattern.finditer(source.text_of(body))):
        end = body.start_mark.index + match.end("name")
        yield Mutant(
            "metric" if key == "DashboardBody" else "log field",
            f"{source.file}: {owner} {key} {number} {match['name']}",
            source.file,
            (end, end),
            GONE,
            tests_of_template(source.file),
        )


def of_state_machine() -> Iterator[Mutant]:
    source = Yaml(STATE_MACHINE)
    for path, mapping in source.mappings():
        state = path[-1] if path else ""
        for key in ("Retry", "Catch"):
            sequence = entry(mapping, key)
            if not isinstance(sequence, yaml.nodes.SequenceNode):
                continue
            for index, item in enumerate(sequence.value):
                errors = scalars(entry(item, "ErrorEquals"))
                names = " ".join(error.value for error in errors)
                yield Mutant(
                    key,
                    f"{state}: {index} {names}",
                    STATE_MACHINE,
                    *source.without_item(sequence, index),
                    TEMPLATE_TESTS,
                )
                for error in errors:
                    yield Mutant(
                        key,
                        f"{state}: {index} renamed {error.value}",
                        STATE_MACHINE,
                        *source.renamed(error),
                        TEMPLATE_TESTS,
                    )


# -- what can be taken out of Python ---------------------------------------------------------------

LOGGING = {"info", "warning", "error", "exception", "append_keys"}
COUNTING = {"count", "add_metric"}


def of_python(path: Path) -> Iterator[Mutant]:
    """Names of metrics, messages and fields of log lines."""
    file = str(path.relative_to(ROOT))
    text = path.read_text()
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))

    def span(node: ast.expr | ast.keyword) -> Span:
        end_line, end_column = node.end_lineno, node.end_col_offset
        assert end_line is not None
        assert end_column is not None
        begin = lines[node.lineno - 1] + node.col_offset
        return begin, lines[end_line - 1] + end_column

    def mutant(kind: str, node: ast.expr | ast.keyword, name: str, change: Span) -> Mutant:
        what = f"{file}:{node.lineno} {name}"
        return Mutant(kind, what, file, change, GONE, tests_of(path))

    assert text.isascii() or path.name not in {"observe.py"}, "spans count bytes"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        owner = ast.unparse(node.func).rpartition(".")[0]
        if name in COUNTING:
            for inner in ast.walk(node.args[0]) if node.args else []:
                if isinstance(inner, ast.Constant) and str(inner.value)[:1].isupper():
                    yield from literal(inner, mutant, "metric", span, text)
        if name in LOGGING and owner.endswith("logger"):
            for keyword in node.keywords:
                if keyword.arg:
                    begin = span(keyword)[0] + len(keyword.arg)
                    yield mutant("log field", keyword, keyword.arg, (begin, begin))
            if node.args and isinstance(node.args[0], ast.Constant):
                yield from literal(node.args[0], mutant, "log field", span, text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_METRICS":
            assert isinstance(node.value, ast.Dict)
            for value in node.value.values:
                assert isinstance(value, ast.Constant)
                yield from literal(value, mutant, "metric", span, text)


def literal(
    node: ast.Constant,
    mutant: Callable[[str, ast.expr | ast.keyword, str, Span], Mutant],
    kind: str,
    span: Callable[[ast.expr | ast.keyword], Span],
    text: str,
) -> Iterator[Mutant]:
    """The text of a constant with more at its end, in an f-string too."""
    end = span(node)[1]
    if text.encode()[end - 1 : end] in (b'"', b"'"):
        end -= 1
    yield mutant(kind, node, str(node.value), (end, end))


def tests_of(path: Path) -> tuple[str, ...]:
    own = f"tests/functions/test_{path.stem}.py"
    return (own,) if path.parent.name == "functions" else ("tests/functions",)


def mutants() -> list[Mutant]:
    """All of them; those of exceptions too."""
    functions = ROOT / "functions"
    files = [*sorted(functions.glob("*.py")), functions / "ses_mail" / "observe.py"]
    found = [
        *of_state_machine(),
        *(m for file in TEMPLATES if (ROOT / file).exists() for m in of_template(file)),
        *(m for path in files for m in of_python(path)),
    ]
    same = [name for name, times in Counter(m.id for m in found).items() if times > 1]
    assert not same, f"ids must tell mutants apart: {same}"
    return found


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
    present = [test for test in tests if (folder / test).exists()]
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(folder)
    output = os.open(folder / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    import pytest

    code = 99
    try:
        # The linters know AWS's rules, not our promises, and take ten seconds each time.
        quick = ["-m", "not slow", "-k", "not linters"]
        options = ["-x", "-q", *quick, "-p", "no:cacheprovider", "-p", "no:cov"]
        code = int(pytest.main([*options, f"--rootdir={folder}", *present]))
    finally:
        os._exit(code)


class Outcome(NamedTuple):
    """Whether a mutant was noticed, and what pytest's last line said."""

    noticed: bool
    said: str


def said(folder: Path) -> str:
    lines = (folder / "pytest.log").read_text(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), "")


def run(found: list[Mutant], folders: list[Path], deadline: float) -> dict[Mutant, Outcome]:
    """Each mutant in one of the copies; those that the time did not suffice for are absent."""
    outcomes: dict[Mutant, Outcome] = {}
    waiting = list(reversed(found))
    free = list(folders)
    running: dict[int, tuple[Mutant, Path, bytes, float]] = {}
    while waiting or running:
        while waiting and free and time.monotonic() < deadline:
            mutant, folder = waiting.pop(), free.pop()
            original = (folder / mutant.file).read_bytes()
            begin, end = mutant.span
            if not mutant.file.endswith(".py"):  # YAML's marks count characters
                text = original.decode()
                begin, end = len(text[:begin].encode()), len(text[:end].encode())
            (folder / mutant.file).write_bytes(
                original[:begin] + mutant.new.encode() + original[end:]
            )
            running[start(folder, mutant.tests)] = (mutant, folder, original, time.monotonic())
        if not running:
            break
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.05)
            for late, (_, _, _, since) in running.items():
                if time.monotonic() - since > PATIENCE:
                    os.killpg(late, signal.SIGKILL)
            continue
        mutant, folder, original, _ = running.pop(child)
        (folder / mutant.file).write_bytes(original)
        free.append(folder)
        outcomes[mutant] = Outcome(status != 0, said(folder))
        print("." if status else f"\nSURVIVED {mutant.id}\n", end="", flush=True)
    print()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose id holds this text")
    parser.add_argument("--list", action="store_true", help="name them and run nothing")
    parser.add_argument("--verbose", action="store_true", help="say what noticed each")
    given = parser.parse_args()
    found = [mutant for mutant in mutants() if given.only in mutant.id]
    if given.list:
        print("\n".join(mutant.id for mutant in found))
        return 0
    started = time.monotonic()
    preload()
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "tests"]
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        names = [f"copy{number}" for number in range(os.cpu_count() or 1)]
        folders = [copy_of_project(Path(temporary, name)) for name in names]
        for tests in sorted({mutant.tests for mutant in found}):
            child = start(folders[0], tests)
            if os.waitpid(child, 0)[1]:
                print(f"{', '.join(tests)} fail without any mutant:", said(folders[0]))
                return 2
        outcomes = run(found, folders, started + MINUTES * 60)
    return report(found, outcomes, given.verbose, time.monotonic() - started)


def report(
    found: list[Mutant], outcomes: dict[Mutant, Outcome], verbose: bool, seconds: float
) -> int:
    """Print killed/total; returns the exit code."""
    bad = 0
    for mutant in found:
        outcome = outcomes.get(mutant)
        if mutant.id in EXCEPTIONS:
            print(f"exception  {mutant.id}\n           {EXCEPTIONS[mutant.id]}")
            if outcome and outcome.noticed:
                print("           but it was noticed: take it off the list")
                bad += 1
        elif outcome is None:
            print(f"no time    {mutant.id}")
            bad += 1
        elif not outcome.noticed:
            print(f"survived   {mutant.id}")
            bad += 1
        elif verbose:
            print(f"killed     {mutant.id}\n           {outcome.said}")
    counted = [mutant for mutant in found if mutant.id not in EXCEPTIONS]
    for kind in dict.fromkeys(mutant.kind for mutant in counted):
        of_kind = [mutant for mutant in counted if mutant.kind == kind]
        killed = sum(1 for m in of_kind if m in outcomes and outcomes[m].noticed)
        print(f"{kind:12} {killed}/{len(of_kind)}")
    killed = sum(1 for m in counted if m in outcomes and outcomes[m].noticed)
    print(f"killed {killed}/{len(counted)}, {len(EXCEPTIONS)} exceptions, {seconds:.0f} s")
    unknown = set(EXCEPTIONS) - {mutant.id for mutant in found}
    if unknown:
        print(f"exceptions for what is no mutant: {sorted(unknown)}")
    return 1 if bad or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
