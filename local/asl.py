"""Makes moto's Step Functions interpreter behave as AWS does where a mail workflow would notice.

moto ships the interpreter without a JSONata evaluator and with everything in real time. What is
changed here are private names of moto 5.2.5; tests/unit/test_local_asl.py fails loudly if an
upgrade moves one of them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timezone
from types import SimpleNamespace
from typing import Any, cast

import boto3
from botocore.config import Config
from jsonata.jsonata import Jsonata
from jsonata.utils import Utils
from moto.stepfunctions.parser import models as parser_models
from moto.stepfunctions.parser.api import EvaluationFailedEventDetails, HistoryEventType
from moto.stepfunctions.parser.asl.component.common.assign import assign_decl
from moto.stepfunctions.parser.asl.component.common.error_name import error_equals_decl
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.common.string import string_expression
from moto.stepfunctions.parser.asl.component.state import state
from moto.stepfunctions.parser.asl.component.state.exec import execute_state
from moto.stepfunctions.parser.asl.component.state.exec.state_task import (
    lambda_eval_utils,
    state_task,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_aws_sdk,
    state_task_service_dynamodb,
    state_task_service_sqs,
)
from moto.stepfunctions.parser.asl.component.state.wait.wait_function import wait_function
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.parse import preprocessor
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str
from moto.stepfunctions.parser.backend import execution as execution_module
from moto.stepfunctions.parser.backend import execution_worker

from local.patches import Patches

# Real seconds that a task is given at least, however fast the cloud's time runs: work itself is
# not faster than on AWS, and here it also queues for a free worker.
TASK_TIMEOUT_FLOOR = 60.0

# AWS: "States.ALL can't catch" these two, and no Retry or Catch that names them helps either.
UNCATCHABLE = {
    StatesErrorNameType.StatesRuntime.to_name(),
    StatesErrorNameType.StatesStatesDataLimitExceeded.to_name(),
}

HASHES = {
    "MD5": hashlib.md5,
    "SHA-1": hashlib.sha1,
    "SHA-256": hashlib.sha256,
    "SHA-384": hashlib.sha384,
    "SHA-512": hashlib.sha512,
}


class NothingError(Exception):
    """The expression yields nothing: an error on AWS, None in jsonata-python."""


def evaluate(
    expression: str, variables: Mapping[str, Any], now: Callable[[], float] = time.time
) -> Any:
    """Value of a JSONata expression (without `{% %}`) as Step Functions would compute it.

    `variables` are bound by name without `$`. Raises NothingError, or whatever jsonata-python
    raises for a type error.
    """
    compiled = Jsonata.jsonata(expression)
    compiled.set_output_convert_nulls(False)
    result = compiled.evaluate(None, {**_functions(now), **variables})
    if result is None:
        raise NothingError(f"The JSONata expression '{expression}' returned nothing (undefined).")
    return _plain(result)


def _plain(value: Any) -> Any:
    """Only what JSON knows: jsonata-python's sequences and nulls converted."""
    if value is None or value is Utils.NULL_VALUE:
        return None
    if isinstance(value, Utils.RangeList):
        return [value[i] for i in range(len(value))]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float):
        return value
    raise TypeError("returned an unsupported result type: a function or a pattern")


def _functions(now: Callable[[], float]) -> dict[str, Any]:
    """The functions that Step Functions adds to JSONata, and the clock."""

    def refuse(*_: Any) -> Any:
        raise TypeError("Step Functions does not support $eval")

    def partition(items: Sequence[Any], size: int) -> list[Any]:
        return [list(items[i : i + size]) for i in range(0, len(items), size)]

    def numbers(first: int, last: int, step: int) -> list[int]:
        return list(range(first, last + (1 if step > 0 else -1), step))

    def digest(content: Any, algorithm: str = "SHA-256") -> str:
        text = content if isinstance(content, str) else to_json_str(content, separators=(",", ":"))
        return HASHES[algorithm](text.encode()).hexdigest()

    def seeded(seed: int | None = None) -> float:
        return (random.Random(seed) if seed is not None else random).random()

    def moment(*_: Any) -> str:
        return iso(now())

    added: dict[str, Callable[..., Any]] = {
        "eval": refuse,
        "partition": partition,
        "range": numbers,
        "hash": digest,
        "random": seeded,
        "uuid": lambda: str(uuid.uuid4()),
        "parse": json.loads,
        "now": moment,
        "millis": lambda: int(now() * 1000),
    }
    return {name: Jsonata.JLambda(function) for name, function in added.items()}


def iso(epoch: float) -> str:
    """`2026-11-24T13:05:00.123Z`, as AWS writes timestamps."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class Interpreter:
    """The adapter, installed into moto from `install` to `uninstall`.

    `factor` is real seconds per second of the cloud; `now` its clock; `endpoint` the moto server
    that tasks call; `guard(service, operation, parameters)` raises if the state machine's role
    does not allow the call. `on_end` is called with each execution (moto's) that ended, `on_client`
    with each client that tasks call through.
    """

    def __init__(
        self,
        factor: float,
        now: Callable[[], float],
        endpoint: str,
        region: str,
        guard: Callable[[str, str, Mapping[str, Any]], None],
        on_end: Callable[[Any], None] = lambda execution: None,
        on_client: Callable[[Any], None] = lambda client: None,
    ) -> None:
        self._on_end = on_end
        self._on_client = on_client
        self._factor = factor
        self._now = now
        self._endpoint = endpoint
        self._region = region
        self._guard = guard
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()
        self._stopped = threading.Event()
        self._patches = Patches()

    def install(self) -> None:
        replace = self._patches.replace
        # moto leaves escapes in some strings, and reads others as Python would.
        replace(preprocessor, "from_string_literal", _string_of)
        replace(preprocessor.Preprocessor, "_inner_string_of", staticmethod(_string_of))
        replace(execution_worker.ExecutionWorker, "_get_evaluation_entrypoint", _parsed())
        replace(string_expression.StringJSONata, "_eval_body", self._expression())
        replace(assign_decl.AssignDecl, "_eval_body", _assign)
        replace(state.CommonStateField, "_eval_body", _then_commit(state.CommonStateField))
        owner = execute_state.ExecutionState
        replace(owner, "_evaluate_with_timeout", _with_output(owner._evaluate_with_timeout))
        task = state_task.StateTask
        replace(task, "_eval_parameters", _limited(task._eval_parameters))
        replace(error_equals_decl.ErrorEqualsDecl, "_eval_body", _error_equals())
        replace(retrier_decl, "time", SimpleNamespace(sleep=self._sleep))
        replace(wait_function.WaitFunction, "_eval_body", self._wait())
        replace(execute_state, "threading", SimpleNamespace(Event=self._timeout_event()))
        # Dates of executions: whoever asks what ended in the last hours goes by the cloud's clock.
        for dated in (execution_module, parser_models):
            replace(dated, "datetime", _clocked(self._now))
        communication = execution_module.BaseExecutionWorkerCommunication
        replace(communication, "_reflect_execution_status", self._ended(communication))
        replace(execution_module.Execution, "stop", _stop(execution_module.Execution.stop))
        for module in (
            lambda_eval_utils,
            state_task_service_aws_sdk,
            state_task_service_dynamodb,
            state_task_service_sqs,
        ):
            replace(module, "boto_client_for", self._client)

    def uninstall(self) -> None:
        self._stopped.set()
        self._patches.undo()

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds * self._factor)

    def _wait(self) -> Callable[[Any, Any], None]:
        def eval_body(function: Any, env: Any) -> None:
            self._sleep(function._get_wait_seconds(env=env))

        return eval_body

    def _timeout_event(self) -> type[threading.Event]:
        factor = self._factor

        class TimeoutEvent(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                if timeout is None:
                    return super().wait()
                real = min(timeout * factor, threading.TIMEOUT_MAX)
                return super().wait(max(real, TASK_TIMEOUT_FLOOR))

        return TimeoutEvent

    def _ended(self, communication: Any) -> Callable[[Any], None]:
        original = communication._reflect_execution_status

        def reflect(self_: Any) -> None:
            original(self_)
            execution = self_.execution
            # moto lets an iteration that is stopped fail, and the execution with it.
            if getattr(execution, "was_stopped", False) and execution.status == "FAILED":
                execution.exec_status = execution_module.ExecutionStatus.ABORTED
                execution.error = execution.cause = None
            self._on_end(execution)

        return reflect

    def _client(self, region: str, service: str, state_credentials: Any = None) -> Any:
        # moto makes a client per task: 10 ms each, and boto3's default session is not thread-safe.
        with self._clients_lock:
            if service not in self._clients:
                session: Any = boto3.session.Session()
                self._clients[service] = client = session.client(
                    service,
                    region_name=region,
                    endpoint_url=self._endpoint,
                    aws_access_key_id="state-machine",
                    aws_secret_access_key="local",
                    config=Config(
                        parameter_validation=False,
                        retries={"total_max_attempts": 1},
                        read_timeout=3600,
                        max_pool_connections=200,
                    ),
                )
                client.meta.events.register("provide-client-params", self._check)
                self._on_client(client)
            return self._clients[service]

    def _check(self, params: Mapping[str, Any], model: Any, **_: Any) -> None:
        self._guard(model.service_model.service_name, model.name, params)

    def _expression(self) -> Callable[[Any, Any], None]:
        now = self._now

        def eval_body(string: Any, env: Any) -> None:
            # moto splices variables into the source, where quotes and backslashes break; bound as
            # values they cannot.
            store = env.variable_store
            variables = {**store._outer_scope, **store._inner_scope}
            variables["states"] = {
                **env.states._states_data,
                "context": _context(env.states._states_data["context"]),
            }
            try:
                env.stack.append(evaluate(string.expression, variables, now))
            except Exception as error:
                raise _query_evaluation_error(env, string.expression, error) from error

        return eval_body


def _stop(original: Any) -> Callable[..., None]:
    def stop(self: Any, *args: Any, **kwargs: Any) -> None:
        self.was_stopped = True
        original(self, *args, **kwargs)

    return stop


def _clocked(now: Callable[[], float]) -> SimpleNamespace:
    """The module datetime, for those who ask it what time it is."""

    class Clocked(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clocked:
            return cls.fromtimestamp(now(), tz)

    return SimpleNamespace(datetime=Clocked, timezone=timezone)


def _string_of(parser_rule_context: Any) -> str | None:
    return cast(str | None, json.loads(parser_rule_context.getText()))


def _parsed() -> Callable[[Any], Any]:
    # moto parses the definition for every execution, 0.1 s each. A copy, because components make
    # their keys for retry counters when they are first used; pickle's takes a 25th of deepcopy's
    # time. Locked, or the first hundred executions would all parse.
    lock = threading.Lock()
    pickled: dict[str, bytes] = {}

    def entrypoint(worker: Any) -> Any:
        definition = worker._evaluation_details.state_machine_details.definition
        with lock:
            if definition not in pickled:
                pickled[definition] = pickle.dumps(AmazonStateLanguageParser.parse(definition)[0])
        return pickle.loads(pickled[definition])

    return entrypoint


def _context(context: Mapping[str, Any]) -> dict[str, Any]:
    """The context object as JSON: moto keeps datetimes in it."""
    started = context["Execution"]["StartTime"]
    text = iso(started.timestamp()) if isinstance(started, datetime) else started
    return {**context, "Execution": {**context["Execution"], "StartTime": text}}


def _query_evaluation_error(env: Any, expression: str, error: Exception) -> Exception:
    name = StatesErrorName(typ=StatesErrorNameType.StatesQueryEvaluationError)
    cause = (
        str(error)
        if isinstance(error, NothingError)
        else f"The JSONata expression '{expression}' failed: {error}"
    )
    details = EventDetails(
        evaluationFailedEventDetails=EvaluationFailedEventDetails(
            cause=cause, error=name.error_name, state=env.next_state_name or ""
        )
    )
    env.event_manager.add_event(
        context=env.event_history_context,
        event_type=HistoryEventType.EvaluationFailed,
        event_details=details,
    )
    event = FailureEvent(
        env=env,
        error_name=name,
        event_type=HistoryEventType.EvaluationFailed,
        event_details=details,
    )
    return cast(Exception, FailureEventException(failure_event=event))


def _assign(decl: Any, env: Any) -> None:
    """Evaluate Assign now, but let it take effect after the state's Output, as AWS does."""
    pending = getattr(env, "pending_assignments", {})
    for binding in decl.declaration_bindings:
        binding.eval(env=env)
        pending.update(env.stack.pop())
    env.pending_assignments = pending


def _then_commit(kind: Any) -> Callable[[Any, Any], None]:
    original = kind._eval_body

    def eval_body(self: Any, env: Any) -> None:
        env.pending_assignments = {}
        original(self, env)
        for name, value in env.pending_assignments.items():
            env.variable_store.set(variable_identifier=name, variable_value=value)
        # Else moto would report them in the history when the next state exits.
        env.variable_store.reset_tracing()

    return eval_body


def _with_output(original: Any) -> Callable[[Any, Any], None]:
    """A task whose Output or Assign cannot be evaluated has failed, for its Retry and Catch too.

    moto evaluates Output when Retry and Catch are over; here it is tried before.
    """

    def evaluate_with_timeout(self: Any, env: Any) -> None:
        depth = len(env.stack)
        try:
            original(self, env)
            if self.output:
                self.output.jsonata_template_value.eval(env=env)
                env.stack.pop()
        except Exception:
            del env.stack[depth:]
            env.pending_assignments = {}
            raise

    return evaluate_with_timeout


def _limited(original: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """AWS, States.DataLimitExceeded: "the size of state input after Parameters processing"."""

    def eval_parameters(self: Any, env: Any) -> dict[str, Any]:
        parameters: dict[str, Any] = original(self, env)
        self._verify_size_quota(env=env, value=parameters)
        return parameters

    return eval_parameters


def _error_equals() -> Callable[[Any, Any], None]:
    original = error_equals_decl.ErrorEqualsDecl._eval_body

    def eval_body(self: Any, env: Any) -> None:
        if env.stack[-1] is not None and env.stack[-1].error_name in UNCATCHABLE:
            env.stack[-1] = False
        else:
            original(self, env)

    return eval_body
