"""Command lines that an answer proposes: pasted, each acts where the command that gave it did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextvars import ContextVar

_chosen: ContextVar[Mapping[str, str]] = ContextVar("chosen")


def choose(options: Mapping[str, str]) -> None:
    """The global options that every hint repeats from now on, as `{"--env": "prod"}`."""
    _chosen.set(options)


def hint(*words: str) -> str:
    """`sesmail` with these words, as a shell takes them.

    >>> hint("routes", "show", "*@example.com")
    "sesmail routes show '*@example.com'"
    """
    options = (word for option in _chosen.get({}).items() for word in option)
    return shlex.join(("sesmail", *words, *options))
