"""CloudWatch Logs: the functions' log files as the events of their log groups."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from moto.logs.models import LogsBackend

from local.patches import Patches
from local.runtime import Runtime


def new_lines(path: Path, read: dict[Path, int]) -> list[bytes]:
    """The whole lines that the file got since `read` was last brought up to date, as it is now."""
    with path.open("rb") as log:
        log.seek(read.get(path, 0))
        text = log.read()
    whole = text[: text.rfind(b"\n") + 1]
    read[path] = read.get(path, 0) + len(whole)
    return whole.splitlines()


def install_log_groups(patches: Patches, functions: Callable[[], Runtime]) -> None:
    """Whoever filters or tails a function's log group finds what its workers wrote so far."""
    answer = LogsBackend.filter_log_events
    lock = threading.Lock()
    read: dict[Path, int] = {}

    def filter_log_events(backend: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            for name, function in functions().functions.items():
                for path in functions().log_files(name):
                    _put(backend, function.log_group, path, new_lines(path, read))
        return answer(backend, *args, **kwargs)

    patches.replace(LogsBackend, "filter_log_events", filter_log_events)


def _put(backend: Any, group: str, path: Path, lines: list[bytes]) -> None:
    if not lines or group not in backend.groups:
        return  # a function whose group was deleted logs into nowhere
    if path.stem not in backend.groups[group].streams:
        backend.create_log_stream(group, path.stem)
    events: list[dict[str, Any]] = []
    at = 0
    for line in lines:
        text = line.decode(errors="replace")
        # In order, as CloudWatch wants them; a traceback's lines have no time of their own.
        at = max(at, _milliseconds(text) or at or int(time.time() * 1000))
        events.append({"timestamp": at, "message": text})
    backend.put_log_events(group, path.stem, events)


def _milliseconds(line: str) -> int:
    """When the line says that it was written; 0 if it does not."""
    try:
        return int(datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp() * 1000)
    except (KeyError, TypeError, ValueError):
        return 0
