"""Replacing attributes of other people's modules, and putting them back."""

from __future__ import annotations

import inspect
from typing import Any


class Patches:
    """Replacements that are undone together."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Raises AttributeError if `owner` has no `name`: the library has changed."""
        # Static, so that a staticmethod is put back as one.
        self._undo.append((owner, name, inspect.getattr_static(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        while self._undo:
            owner, name, value = self._undo.pop()
            setattr(owner, name, value)
