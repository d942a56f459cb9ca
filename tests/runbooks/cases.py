"""What a block needs before it can run, and what a person sees when it worked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from local.cloud import Cloud
from tests.workflow.kit import Post

from .blocks import Block, Ran, Terminal


@dataclass
class World:
    """The embedded cloud and an operator's terminal; `variables` are the shell's, `names` replace
    the placeholders `{…}` of a block."""

    cloud: Cloud
    post: Post
    terminal: Terminal
    variables: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    subject: str = ""  # of the email that was sent last

    def fill(self, text: str) -> str:
        """The text with its placeholders filled in."""
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return text


def _nothing(world: World) -> None:
    """Most blocks only look."""


def _accept(world: World, ran: Ran) -> None:
    """What the block prints says it all."""


@dataclass(frozen=True)
class Case:
    """How to run a block.

    shows: patterns that its output must have; prepare: brings the cloud into the state that the
    section assumes; after: what must hold in the cloud then; changes: named replacements; code: how
    it ends, where the answer is no; not_run: why it is not run at all.
    """

    shows: tuple[str, ...] = ()
    prepare: Callable[[World], None] = _nothing
    after: Callable[[World, Ran], None] = _accept
    changes: tuple[str, ...] = ()
    code: int = 0
    not_run: str = ""


def run(
    block: Block,
    case: Case,
    world: World,
    changes: Mapping[str, tuple[str, str]],
    record: Callable[[str, object], None],
) -> None:
    """Run a block of a document as its case says, and record for the summary how it was run."""
    reason = block.not_run or case.not_run
    record("block", "marked" if reason else "changed" if case.changes else "as written")
    if reason:
        return
    text = block.text
    for name in case.changes:
        old, new = changes[name]
        assert old in text, name
        text = text.replace(old, new)
    case.prepare(world)
    text = world.fill(text)
    ran = world.terminal.run(text, world.variables)
    ran.check(case.code)
    assert ran.out.strip() or not case.shows, ran
    for pattern in case.shows:
        assert re.search(pattern, ran.out), (pattern, ran)
    case.after(world, ran)
