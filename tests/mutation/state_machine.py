"""Mutants of the state machine: every number, transition, expression and entry of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutation.source import (
    GONE,
    Change,
    Mapping,
    Mutant,
    Path_,
    Scalar,
    Sequence,
    Yaml,
    entry,
    other_numbers,
    scalars,
)

FILE = "statemachines/process_email.asl.yaml"
# The contract of the file first; then the workflow itself, a case for each of its paths.
TESTS = (
    "tests/template/test_contract.py",
    "tests/template/test_constants.py",
    "tests/template/test_retries.py",
    "tests/workflow/test_every_path.py",
    "tests/workflow/test_errors.py",
    "tests/workflow/test_optional_fields.py",
    "tests/workflow/test_verdicts.py",
    "tests/workflow/test_redrive.py",
    "tests/workflow/test_bad_input.py",
    "tests/workflow/test_observability.py",
    "tests/workflow/test_deliveries.py",
)
_NUMBERS = {"IntervalSeconds", "BackoffRate", "MaxDelaySeconds", "MaxAttempts", "TimeoutSeconds"}
_TURNED = {"=": "!=", "!=": "=", "and": "or", "or": "and", "in": "=", ">": ">=", "+": "-", "?": "?"}
_NO_CHANGE = {"Comment", "QueryLanguage", "Type", "Mode", "Resource", "FunctionName", "StartAt"}


def mutants() -> Iterator[Mutant]:
    return _Machine().all()


class _Machine:
    def __init__(self) -> None:
        self.source = Yaml(FILE)

    def mutant(self, kind: str, path: Path_, what: str, change: Change) -> Mutant:
        where = ".".join(p for p in path if p not in ("States", "ItemProcessor"))
        return Mutant(kind, f"{where} {what}", FILE, *change, TESTS)

    def all(self) -> Iterator[Mutant]:
        for path, node in self.source.nodes():
            if isinstance(node, Mapping):
                yield from self._entries(path, node)
                yield from self._handlers(path, node)
                yield from self._transitions(path, node)
            elif isinstance(node, Scalar):
                yield from self._scalar(path, node)

    def _entries(self, path: Path_, mapping: Mapping) -> Iterator[Mutant]:
        """Each field of what a state says, hands on and remembers removed."""
        if not path or path[-1] in ("States", "Item", "MessageAttributes"):
            return
        inner = {"Arguments", "Output", "Assign"} & set(path)
        for key, _ in mapping.value:
            name = str(key.value)
            own = {"Assign", "Output", "Default", "JitterStrategy", "MaxDelaySeconds", "Catch"}
            own |= {"TimeoutSeconds", "Retry"}
            if (inner or name in own) and name not in ("S", "DataType", "StringValue"):
                change = self.source.without_entry(mapping, name)
                yield self.mutant("entry", path, f"without {name}", change)

    def _handlers(self, path: Path_, mapping: Mapping) -> Iterator[Mutant]:
        state = path[-1] if path else ""
        for key in ("Retry", "Catch", "Choices"):
            sequence = entry(mapping, key)
            if not isinstance(sequence, Sequence):
                continue
            for index, item in enumerate(sequence.value):
                errors = scalars(entry(item, "ErrorEquals"))
                names = " ".join(error.value for error in errors)
                change = self.source.without_item(sequence, index)
                yield self.mutant(key, (state,), f"{index} {names}", change)
                for error in errors:
                    change = self.source.renamed(error)
                    yield self.mutant(key, (state,), f"{index} renamed {error.value}", change)

    def _transitions(self, path: Path_, mapping: Mapping) -> Iterator[Mutant]:
        """Each Next and Default to the other states of its scope."""
        states = entry(mapping, "States")
        if not isinstance(states, Mapping):
            return
        names = [key.value for key, _ in states.value]
        for at, node in self.source.nodes(states):
            inside = "States" in at
            if isinstance(node, Scalar) and at[-1] in ("Next", "Default") and not inside:
                others = [n for n in names if n not in (node.value, at[0])]
                index = others.index(next(n for n in names if n in others))
                for other in (others[index], others[-1]):
                    change = self.source.replaced(node, other)
                    yield self.mutant("transition", (*path, *at), f"to {other}", change)

    def _scalar(self, path: Path_, scalar: Scalar) -> Iterator[Mutant]:
        text = self.source.text_of(scalar).strip()
        if any(key in path for key in _NO_CHANGE):
            return
        if path[-1] in _NUMBERS and re.fullmatch(r"\d+", text):
            for number in other_numbers(text):
                change = self.source.replaced(scalar, number)
                yield self.mutant("number", path, f"{text} as {number}", change)
        elif text.startswith('"{%'):
            yield from self._expression(path, scalar, text)
        elif {"Arguments", "Output", "Assign", "Error"} & set(path) and path[-1] != "DataType":
            yield self.mutant("text", path, f"{text} renamed", self.source.renamed(scalar))

    def _expression(self, path: Path_, scalar: Scalar, text: str) -> Iterator[Mutant]:
        def changed(kind: str, match: re.Match[str], new: str, number: int) -> Mutant:
            begin = scalar.start_mark.index + match.start("it")
            what = f"{number} {match['it']} as {new}"
            return self.mutant(kind, path, what, ((begin, begin + len(match["it"])), new))

        for number, match in enumerate(re.finditer(r" (?P<it>=|!=|and|or|in|>|\+) ", text)):
            yield changed("operator", match, _TURNED[match["it"]], number)
        for number, match in enumerate(re.finditer(r"(?<![\w'])(?P<it>\d+)(?![\w'])", text)):
            for new in other_numbers(match["it"]):
                yield changed("constant", match, new, number)
        for number, match in enumerate(re.finditer(r"(?P<it>)'(?=[,}\]) ]|$)", text)):
            yield changed("constant", match, GONE, number)
        for number, match in enumerate(re.finditer(r"\b(?P<it>true)\b", text)):
            yield changed("constant", match, "false", number)
        for number, match in enumerate(re.finditer(r"(?P<it>\$not\(\$ignoreVerdicts\))", text)):
            yield changed("operator", match, "$ignoreVerdicts", number)
        for number, match in enumerate(re.finditer(r"(?P<it> & '')", text)):
            yield changed("operator", match, "", number)
        for number, match in enumerate(re.finditer(r"\? (?P<it>'\w+' : '\w+')", text)):
            one, _, other = match["it"].partition(" : ")
            yield changed("operator", match, f"{other} : {one}", number)
        for number, match in enumerate(re.finditer(r"(?P<it>\[)(?=\$)", text)):
            # Without its brackets a list of one is an element.
            end = text.rfind("]")
            if text.count("[") == 1 and text.endswith('] %}"'):
                inner = text[match.start() + 1 : end]
                begin = scalar.start_mark.index + match.start()
                change = (begin, begin + end - match.start() + 1), inner
                yield self.mutant("brackets", path, f"{number}", change)
