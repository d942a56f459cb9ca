"""A mutant, and the files that mutants are read off, with the position of everything in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
GONE = "Gone"

Node = yaml.nodes.Node
Mapping = yaml.nodes.MappingNode
Sequence = yaml.nodes.SequenceNode
Scalar = yaml.nodes.ScalarNode
Path_ = tuple[str, ...]
Span = tuple[int, int]
Change = tuple[Span, str]  # a span of the file's characters, and what stands there instead


class Mutant(NamedTuple):
    """A change of a file's text, and the tests that should notice, the likeliest first."""

    kind: str
    what: str
    file: str
    span: Span
    new: str
    tests: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.what}"


class Yaml:
    """A YAML file with the position of everything in it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.text = (ROOT / file).read_text()
        self.root = yaml.compose(self.text, Loader=yaml.SafeLoader)

    def mappings(
        self, node: Node | None = None, path: Path_ = ()
    ) -> Iterator[tuple[Path_, Mapping]]:
        """Every mapping with the keys that lead to it."""
        for found, inner in self.nodes(node or self.root, path):
            if isinstance(inner, Mapping):
                yield found, inner

    def nodes(self, node: Node | None = None, path: Path_ = ()) -> Iterator[tuple[Path_, Node]]:
        """Every value with the keys that lead to it."""
        node = node or self.root
        yield path, node
        if isinstance(node, Mapping):
            for key, value in node.value:
                yield from self.nodes(value, (*path, str(key.value)))
        elif isinstance(node, Sequence):
            for index, value in enumerate(node.value):
                yield from self.nodes(value, (*path, str(index)))

    def text_of(self, node: Node) -> str:
        return self.text[node.start_mark.index : node.end_mark.index]

    def renamed(self, node: Node) -> Change:
        """A scalar with more at its end."""
        text = self.text_of(node).rstrip()
        end = node.start_mark.index + len(text)
        quote = text[-1] if text[-1] in "\"'" else ""
        return (end - len(quote), end), f"{GONE}{quote}"

    def replaced(self, node: Node, new: str) -> Change:
        """Something else in a node's place."""
        begin = node.start_mark.index
        return (begin, begin + len(self.text_of(node).rstrip())), new

    def without_item(self, sequence: Sequence, index: int) -> Change:
        """A sequence without one of its items."""
        items = sequence.value
        if len(items) == 1:
            return self.replaced(sequence, "[]")
        starts = [item.start_mark.index for item in items]
        last = index + 1 == len(items)
        if sequence.flow_style:
            if last:
                return (items[index - 1].end_mark.index, sequence.end_mark.index - 1), ""
            return (starts[index], starts[index + 1]), ""
        begin = self.text.rfind("-", 0, starts[index])
        end = self._end(sequence) if last else self.text.rfind("-", 0, starts[index + 1])
        return (begin, end), ""

    def without_entry(self, mapping: Mapping, name: str) -> Change:
        """A mapping without one of its keys."""
        keys = [key for key, _ in mapping.value]
        if len(keys) == 1:
            return self.replaced(mapping, "{}")
        index = next(i for i, key in enumerate(keys) if key.value == name)
        begin = keys[index].start_mark.index
        if index + 1 < len(keys):
            return (begin, keys[index + 1].start_mark.index), ""
        if mapping.flow_style:
            return (mapping.value[index - 1][1].end_mark.index, mapping.end_mark.index - 1), ""
        return (begin, self._end(mapping)), ""

    def _end(self, node: Node) -> int:
        """Where its own text ends: the mark of a block's end is at what comes next."""
        return node.start_mark.index + len(self.text_of(node).rstrip())


def entry(mapping: Node, name: str) -> Node | None:
    if not isinstance(mapping, Mapping):
        return None
    return next((value for key, value in mapping.value if key.value == name), None)


def scalars(node: Node | None) -> list[Scalar]:
    if isinstance(node, Scalar):
        return [node]
    if isinstance(node, Sequence):
        return [item for item in node.value if isinstance(item, Scalar)]
    return []


def other_numbers(text: str) -> list[str]:
    """Ten times, twice and half of a number as it is written, or 1 for 0."""
    value = float(text.replace("_", ""))
    if value == 0:
        return ["1"]
    made = [value * 10, value * 2, value / 2]
    if "." not in text:
        made = [*made[:2], value // 2]
    return [str(m if "." in text else int(m)) for m in made]
