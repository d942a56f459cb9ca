"""The way into the embedded AWS, on which a call can be refused as AWS would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moto.core.exceptions import ServiceException
from moto.core.responses import BaseResponse
from moto.core.utils import camelcase_to_underscores

from local.patches import Patches

When = Callable[[Mapping[str, Any]], bool]


@dataclass
class Refusal:
    """Of a call, named as in `dynamodb:PutItem`; `count` is how often it happened."""

    call: str
    code: str
    when: When
    times: int | None
    count: int = 0


# Of this module, so that moto does not look for a service of the exception's own.
RefusedError: Any = type("RefusedError", (ServiceException,), {"__module__": __name__})


class Gate:
    """Lets every call through but those that it is told to refuse."""

    def __init__(self) -> None:
        self._refusals: list[Refusal] = []
        self._lock = threading.Lock()

    def install(self, patches: Patches) -> None:
        """Stand before everything that moto answers."""
        answer = BaseResponse.call_action

        def call_action(response: Any) -> Any:
            action = response._get_action()
            call = f"{response.boto3_service_name}:{action}"
            # Of Lambda's calls moto itself reads no parameters.
            params = getattr(response, "params", None) or {
                **(response.uri_match or {}),
                "Payload": response.body,
            }
            code = self._code(call, params)
            if code:

                def refuse() -> None:
                    raise RefusedError(code, f"{code}: not now")

                # A response is one request's; moto looks its action up by this name.
                setattr(response, camelcase_to_underscores(action), refuse)
            return answer(response)

        patches.replace(BaseResponse, "call_action", call_action)

    def refuse(
        self, call: str, code: str, when: When = lambda _: True, times: int | None = None
    ) -> Refusal:
        """Refuse the call from now on, `times` times or until the gate is opened; `when` gets its
        parameters."""
        refusal = Refusal(call, code, when, times)
        self._refusals.append(refusal)
        return refusal

    def open(self) -> None:
        """Refuse nothing any more."""
        self._refusals = []

    def _code(self, call: str, params: Mapping[str, Any]) -> str | None:
        with self._lock:
            for refusal in self._refusals:
                due = refusal.times is None or refusal.count < refusal.times
                if call == refusal.call and due and refusal.when(params):
                    refusal.count += 1
                    return refusal.code
        return None
