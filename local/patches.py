"""Replacing or adding attributes of other people's modules, and putting things back."""

from __future__ import annotations

import inspect
from typing import Any

_ABSENT = object()


class Patches:
    """Replacements and additions that are undone together."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Raises AttributeError if `owner` has no `name`: the library has changed."""
        # Static, so that a staticmethod is put back as one.
        self._undo.append((owner, name, inspect.getattr_static(owner, name)))
        setattr(owner, name, value)

    def add(self, owner: Any, name: str, value: Any) -> None:
        """Raises AttributeError if `owner` has a `name` by now, which then is to be preferred."""
        if hasattr(owner, name):
            raise AttributeError(f"{owner!r} has {name} already")
        self._undo.append((owner, name, _ABSENT))
        setattr(owner, name, value)

    def undo(self) -> None:
        while self._undo:
            owner, name, value = self._undo.pop()
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
