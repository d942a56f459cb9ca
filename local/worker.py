"""Lambda sandboxes: processes that run one handler each, one invocation at a time.

Started by runtime.py as a plain script, isolated from the developer's site-packages; it may import
nothing but the standard library until `sys.path` is what Lambda's would be. The first process
imports the handler and forks a sandbox whenever it is told to, through a socket whose descriptor is
named on the command line. A sandbox gets descriptors of its own for requests and replies, one JSON
document per line, and a log for stdout and stderr.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
import types
from datetime import UTC, datetime
from typing import Any

# boto3's names of services that functions call, by the prefix of their actions.
BOTO3 = {
    "dynamodb": "dynamodb",
    "s3": "s3",
    "ses": "ses",
    "sqs": "sqs",
    "ssm": "ssm",
    "states": "stepfunctions",
}


class Context:
    """What Lambda hands to a handler as `context`."""

    def __init__(self, setup: dict[str, Any], request: dict[str, Any]) -> None:
        self.aws_request_id = request["id"]
        self.function_name = setup["name"]
        self.function_version = "$LATEST"
        self.invoked_function_arn = setup["arn"]
        self.memory_limit_in_mb = setup["memory"]
        self.log_group_name = setup["log_group"]
        self.log_stream_name = "local"
        self.identity = None
        self.client_context = None
        self._timeout = setup["timeout"]
        self._real_limit = request["limit"]
        self._start = time.monotonic()

    def get_remaining_time_in_millis(self) -> int:
        """The function's timeout at the start, 0 when the parent kills this process."""
        used = (time.monotonic() - self._start) / self._real_limit
        return max(0, int(self._timeout * 1000 * (1 - used)))


def scale_clock(epoch: float, factor: float) -> None:
    """Let the domain's clock run as fast as the cloud's."""
    with contextlib.suppress(ModuleNotFoundError):
        clock = importlib.import_module("ses_mail.clock")
        clock.now = lambda: epoch + (time.time() - epoch) / factor  # type: ignore[attr-defined]


def fast_time(factor: float) -> types.ModuleType:
    """`time` with waits as short as the cloud's; work takes as long as it takes."""
    fast = types.ModuleType("time")
    vars(fast).update(vars(time))
    saved = 0.0

    def sleep(seconds: float) -> None:
        nonlocal saved
        time.sleep(seconds * factor)
        saved += seconds * (1 - factor)

    vars(fast).update(
        sleep=sleep,
        time=lambda: time.time() + saved,
        monotonic=lambda: time.monotonic() + saved,
    )
    return fast


def import_handler(name: str, factor: float | None) -> Any:
    """The handler; with a factor its module sees a `time` that is faster, and nothing else does."""
    module, function = name.rsplit(".", 1)
    if factor is not None:
        importlib.import_module("boto3")  # keeps the real one
        sys.modules["time"] = fast_time(factor)
    try:
        return getattr(importlib.import_module(module), function)
    finally:
        sys.modules["time"] = time


def keep_ages(epoch: float, factor: float) -> None:
    """Who reads the wall's clock sees executions as old as they are by the cloud's, in whose time
    Step Functions lives; all else that a script reads has the wall's time."""
    boto3 = importlib.import_module("boto3")

    def shift(at: datetime) -> datetime:
        now = time.time()
        age = epoch + (now - epoch) / factor - at.timestamp()
        return datetime.fromtimestamp(now - age, UTC)

    def seen(parsed: dict[str, Any], **_: Any) -> None:
        for execution in parsed.get("executions", []):
            for name in ("startDate", "stopDate"):
                if name in execution:
                    execution[name] = shift(execution[name])

    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register("after-call.sfn.ListExecutions", seen)


def load(path: str) -> Any:
    """A module of local/, which is not on this process's path."""
    spec = importlib.util.spec_from_file_location(f"local.{os.path.basename(path)[:-3]}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def enforce_role(setup: dict[str, Any]) -> None:
    """Check every AWS call against the role of this function; local/iam.py says how."""
    load(setup["policy"])  # which iam.py imports
    iam = load(setup["iam"])
    iam.enforce(iam.Role(setup["name"], setup["statements"], setup["policies"], setup["documents"]))


def read_models(statements: list[dict[str, Any]]) -> None:
    """Let boto3 read what it knows of the services in a role, which takes half a second, before the
    forks do."""
    actions = [statement["Action"] for statement in statements]
    names = {name for a in actions for name in (a if isinstance(a, list) else [a])}
    for service in {name.partition(":")[0] for name in names} & set(BOTO3):
        importlib.import_module("boto3").client(BOTO3[service])


def memory(field: str) -> int:
    """Bytes of a /proc/self/status field such as VmRSS; 0 where there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as clear_refs:
        clear_refs.write("5")


def reply(replies: int, document: dict[str, Any]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    data = (json.dumps(document) + "\n").encode()
    while data:
        data = data[os.write(replies, data) :]


def failure(error: BaseException, request_id: str) -> dict[str, Any]:
    """An exception as awslambdaric reports it, from the handler on."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return {
        "errorMessage": str(error),
        "errorType": type(error).__name__,
        "requestId": request_id,
        "stackTrace": traceback.format_list(frames),
    }


def receive(source: int, requests: "queue.Queue[dict[str, Any]]") -> None:
    """Read requests; the end of the pipe means that the parent is gone, whatever happened to it."""
    with open(source, encoding="utf-8") as lines:
        for line in lines:
            requests.put(json.loads(line))
    os._exit(0)


class Sandbox:
    """The handler, imported once; `serve` runs in a process of its own."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._handler: Any = None
        self._init_failure: dict[str, Any] | None = None
        self._sufferer = load(setup["faults"]).Sufferer() if setup["faults"] else None
        try:
            if self._sufferer:
                self._sufferer.install()
            scale_clock(setup["epoch"], setup["factor"])
            enforce_role(setup)
            factor = setup["factor"] if setup["own_clock"] else None
            if factor is not None:
                keep_ages(setup["epoch"], factor)
            self._handler = import_handler(setup["handler"], factor)
            read_models(setup["statements"])
        except Exception as error:
            traceback.print_exc()
            self._init_failure = failure(error, "")
        self._size = memory("VmRSS")

    def serve(self, source: int, replies: int) -> None:
        """Run invocations until the parent is gone."""
        # Pages that a fork has not touched yet are no part of its size, but would be on Lambda.
        untouched = max(0, self._size - memory("VmRSS"))
        requests: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=receive, args=(source, requests), daemon=True).start()
        while True:
            request = requests.get()
            os.environ["_X_AMZN_TRACE_ID"] = request["trace"]
            idle = memory("VmRSS")
            reset_peak()
            result, problem = None, self._init_failure
            if self._sufferer:
                self._sufferer.begin(request["faults"])
            if self._handler:
                try:
                    result = self._handler(request["event"], Context(self._setup, request))
                    json.dumps(result)
                except Exception as error:
                    result, problem = None, failure(error, request["id"])
                    traceback.print_exc()
            sizes = {"idle": idle + untouched, "peak": memory("VmHWM") + untouched}
            reply(replies, {"result": result, "error": problem, **sizes})


def main() -> None:
    setup = json.load(sys.stdin)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.path[:0] = setup["path"]
    sandbox = Sandbox(setup)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            command, descriptors, _, _ = socket.recv_fds(control, 100, 3)
            if not command:
                return
            if command.startswith(b"wait"):
                answer, _ = os.waitpid(int(command.split()[1]), 0)
            elif answer := os.fork():
                for descriptor in descriptors:
                    os.close(descriptor)
            else:
                break
            control.sendall(b"%d\n" % answer)
    requests, replies, log = descriptors
    for standard in (sys.stdout, sys.stderr):
        os.dup2(log, standard.fileno())
    os.close(log)
    sandbox.serve(requests, replies)


if __name__ == "__main__":
    main()
