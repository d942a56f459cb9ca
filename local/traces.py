"""X-Ray's daemon: keeps the segments that the functions send, as they come."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

# The longest datagram; a segment may have 64 KB.
_LONGEST = 65536


class Daemon:
    """Listens on loopback, where every function runs; `documents` are the texts of segments."""

    def __init__(self) -> None:
        self.documents: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def segments(self) -> list[dict[str, Any]]:
        return [json.loads(document) for document in self.documents]

    def stop(self) -> None:
        # Closing alone does not wake the one who waits for it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while datagram := self._socket.recv(_LONGEST):
            # A header with the format stands in front.
            self.documents.append(datagram.partition(b"\n")[2].decode())
