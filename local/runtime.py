"""Lambda's part: worker processes per function, with time-outs, logs and memory figures."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.faults import Faults

HERE = Path(__file__).parent

# Real seconds that an invocation is given at least: the work in it is not faster than on Lambda.
TIMEOUT_FLOOR = 10.0
WORKERS_PER_FUNCTION = 4

# Lambda's own name of it.
TIMED_OUT = "Sandbox.Timedout"


@dataclass(frozen=True)
class Function:
    """A function as the template describes it; `timeout` in seconds, `memory` in MB."""

    name: str
    arn: str
    handler: str
    code: Path
    layers: Sequence[Path]
    environment: Mapping[str, str]
    timeout: int
    memory: int
    log_group: str
    statements: Sequence[Mapping[str, Any]]  # of its role; for the other two see iam.Role
    policies: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    own_clock: bool = False  # reads `time` itself, instead of ses_mail.clock


@dataclass(frozen=True)
class Invocation:
    """One finished invocation; memory in bytes, `ended` (since the epoch) and `seconds` real."""

    function: str
    ended: float
    seconds: float
    idle: int
    peak: int
    failed: str | None


def build_layer(source: Path, target: str, home: Path) -> Path:
    """Folder with a layer's packages for this Python, built by the layer's own makefile if need be.

    Raises RuntimeError with make's output if it fails.
    """
    makefile = next(p for p in (source / "Makefile", source / "makefile") if p.exists())
    folder = _folder(home, source.name, makefile, source / "requirements.txt")

    def build(artifacts: Path) -> None:
        pip = f"PIP={sys.executable} -m pip"
        _run(
            ["make", "-C", source, target, f"ARTIFACTS_DIR={artifacts}", "PIP_FLAGS=", pip],
        )

    return _once(folder, build) / "python"


def build_runtime(home: Path) -> Path:
    """Folder with what is in no layer: boto3, which Lambda's runtime brings, and PySocks, without
    which httplib2 ignores the proxy that leads to the local Google."""
    names = ("boto3", "PySocks")
    requirements = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    folder = _folder(home, "-".join(requirements).replace("==", "-"))

    def build(artifacts: Path) -> None:
        _run([sys.executable, "-m", "pip", "install", "-q", "--target", artifacts, *requirements])

    return _once(folder, build)


def _folder(home: Path, name: str, *inputs: Path) -> Path:
    digest = hashlib.sha256(sys.version.encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return home / f"{name}-{digest.hexdigest()[:12]}"


def _once(folder: Path, build: Any) -> Path:
    if not folder.exists():
        unfinished = folder.with_suffix(f".{os.getpid()}")
        unfinished.mkdir(parents=True)
        try:
            build(unfinished)
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody else built it meanwhile
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _run(command: Sequence[object]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


class Runtime:
    """All functions of the stack; thread-safe. A busy function queues its invocations."""

    def __init__(
        self,
        functions: Mapping[str, Function],
        *,
        libraries: Sequence[Path],  # after code and layers, as Lambda's own runtime is
        surroundings: Mapping[str, str],  # what Lambda sets, and the way to the local endpoints
        epoch: float,
        factor: float,
        directory: Path,
        workers: int = WORKERS_PER_FUNCTION,
        timeout_floor: float = TIMEOUT_FLOOR,
        faults: Faults | None = None,
    ) -> None:
        self.functions = functions
        self.invocations: list[Invocation] = []
        self.callers: dict[str, str] = {}  # root of a trace → ARN of the execution that it is of
        self.libraries = libraries
        self.surroundings = surroundings
        self.epoch = epoch
        self.factor = factor
        self.directory = directory
        self.timeout_floor = timeout_floor
        self.faults = faults
        self.stopped = False
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("*.log"):
            old.unlink()
        self._pools = {name: _Pool(self, f, workers) for name, f in functions.items()}

    def invoke(self, name: str, event: Any) -> tuple[str, bool]:
        """(payload as JSON, whether it is an error) of one synchronous invocation."""
        pool = self._pools[name]
        worker = pool.take()
        started = time.monotonic()
        root = f"1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}"
        if isinstance(event, dict) and "executionArn" in event:
            self.callers[root] = event["executionArn"]
        instructions = self.faults.instructions(name, event) if self.faults else None
        trace = f"Root={root};Parent={uuid.uuid4().hex[:16]};Sampled=1"
        answer = worker.invoke(event, instructions, trace)
        pool.give_back(worker)
        error = answer.get("error")
        if self.faults and error and error["errorType"] == TIMED_OUT:
            self.faults.timed_out(name, event)
        self.invocations.append(
            Invocation(
                name,
                time.time(),
                time.monotonic() - started,
                answer.get("idle", 0),
                answer.get("peak", 0),
                error and error["errorType"],
            )
        )
        return json.dumps(error or answer["result"]), bool(error)

    def prewarm(self, names: Sequence[str] | None = None, count: int = 1) -> None:
        """Start the first workers of these functions (all by default), several at a time."""
        wanted = [name for name in (names or list(self.functions)) for _ in range(count)]
        with ThreadPoolExecutor(max_workers=4) as starters:
            started = list(starters.map(lambda name: (name, self._pools[name].take()), wanted))
        for name, worker in started:
            self._pools[name].give_back(worker)

    def peak_memory(self, name: str) -> tuple[int, int]:
        """(idle, peak) bytes of the function's invocation with the highest peak; idle is the
        process's size just before that invocation."""
        done = [i for i in self.invocations if i.function == name]
        highest = max(done, key=lambda invocation: invocation.peak)
        return highest.idle, highest.peak

    def processes(self, name: str) -> list[int]:
        """Ids of all the function's processes."""
        return [worker.pid for worker in list(self._pools[name].all)]

    def idle(self, name: str) -> list[int]:
        """Ids of those that wait for an event; the last one gets the next."""
        pool = self._pools[name]
        with pool.lock:
            return [worker.pid for worker in pool.idle]

    def log_files(self, name: str) -> list[Path]:
        """What the function's workers wrote to stdout and stderr, one file per worker."""
        return sorted(self.directory.glob(f"{name}.*.log"))

    def stop(self) -> None:
        """Kill every worker and wait for its end."""
        self.stopped = True
        for pool in self._pools.values():
            pool.stop()


@dataclass
class _Pool:
    runtime: Runtime
    function: Function
    size: int
    idle: list[_Worker] = field(default_factory=list)
    all: list[_Worker] = field(default_factory=list)
    started: int = 0
    nursery: _Nursery | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.free = threading.Semaphore(self.size)

    def take(self) -> _Worker:
        self.free.acquire()
        with self.lock:
            while self.idle:
                worker = self.idle.pop()  # the warmest one
                if not worker.ended:
                    return worker
                # Killed from outside between two invocations: Lambda would give it none either.
                worker.kill()
                self.all.remove(worker)
            if self.runtime.stopped:
                self.free.release()
                raise RuntimeError("the embedded cloud is stopped")
            if self.nursery is None:
                self.nursery = _Nursery(self.runtime, self.function)
            self.started += 1
            number = self.started
        worker = self.nursery.bear(number)
        with self.lock:
            self.all.append(worker)
            stopped = self.runtime.stopped
        if stopped:
            worker.kill()
        return worker

    def give_back(self, worker: _Worker) -> None:
        with self.lock:
            if worker.alive:
                self.idle.append(worker)
            else:
                self.all.remove(worker)
        self.free.release()

    def stop(self) -> None:
        with self.lock:
            for worker in self.all:
                worker.kill()
            if self.nursery:
                self.nursery.close()


class _Nursery:
    """The process of one function that has imported its handler, and of which every worker is a
    fork: the packages take a second to import, a fork takes milliseconds."""

    def __init__(self, runtime: Runtime, function: Function) -> None:
        self._runtime = runtime
        self._function = function
        self._lock = threading.Lock()
        self._buffer = b""
        self._control, theirs = socket.socketpair()
        with theirs, (runtime.directory / f"{function.name}.0.log").open("ab") as output:
            self._process = subprocess.Popen(
                # Isolated (-I) and without site-packages (-S): what is not in a layer is not there.
                [sys.executable, "-I", "-S", "-B", HERE / "worker.py", str(theirs.fileno())],
                env={**runtime.surroundings, **_identity(function), **function.environment},
                cwd=function.code,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        setup = {
            "name": function.name,
            "arn": function.arn,
            "handler": function.handler,
            "path": [str(p) for p in (function.code, *function.layers, *runtime.libraries)],
            "iam": str(HERE / "iam.py"),
            "policy": str(HERE / "policy.py"),
            "statements": function.statements,
            "policies": function.policies,
            "documents": function.documents,
            "timeout": function.timeout,
            "memory": function.memory,
            "log_group": function.log_group,
            "epoch": runtime.epoch,
            "factor": runtime.factor,
            "own_clock": function.own_clock,
            "faults": runtime.faults and str(HERE / "faults.py"),
        }
        assert self._process.stdin
        with self._process.stdin as stdin:
            stdin.write(json.dumps(setup).encode())

    def bear(self, number: int) -> _Worker:
        """A new worker; waits until the handler is imported."""
        log = self._runtime.directory / f"{self._function.name}.{number}.log"
        their_requests, requests = os.pipe()
        replies, their_replies = os.pipe()
        with log.open("ab") as output:
            theirs = [their_requests, their_replies, output.fileno()]
            with self._lock:
                socket.send_fds(self._control, [b"fork"], theirs)
                pid = self._answer()
        os.close(their_requests)
        os.close(their_replies)
        return _Worker(self, self._function, self._runtime, pid, requests, replies)

    def reap(self, pid: int) -> None:
        """Wait for the end of a worker that was killed, whose number stays its own until then."""
        with self._lock:
            self._control.sendall(b"wait %d" % pid)
            self._answer()

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _answer(self) -> int:
        while b"\n" not in self._buffer:
            data = self._control.recv(4096)
            if not data:
                raise RuntimeError(f"{self._function.name} does not even start; see its log")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return int(line)


class _Worker:
    def __init__(
        self,
        nursery: _Nursery,
        function: Function,
        runtime: Runtime,
        pid: int,
        requests: int,
        replies: int,
    ) -> None:
        self.function = function
        self.limit = max(function.timeout * runtime.factor, runtime.timeout_floor)
        self.alive = True
        self.pid = pid
        self._nursery = nursery
        self._requests = os.fdopen(requests, "wb", buffering=0)
        self._replies = os.fdopen(replies, "rb", buffering=0)
        self._buffer = b""

    def invoke(
        self, event: Any, faults: Mapping[str, Any] | None = None, trace: str = ""
    ) -> dict[str, Any]:
        request = str(uuid.uuid4())
        self._send(
            {
                "id": request,
                "event": event,
                "trace": trace,
                "limit": self.limit,
                "faults": faults,
            }
        )
        try:
            answer = self._receive(self.limit)
        except TimeoutError:
            self.kill()
            return _death(
                TIMED_OUT,
                f"RequestId: {request} Error: Task timed out after "
                f"{self.function.timeout:.2f} seconds",
            )
        if answer is not None:
            return answer
        self.kill()
        return _death(
            "Runtime.ExitError",
            f"RequestId: {request} Error: Runtime exited without providing a reason",
        )

    @property
    def ended(self) -> bool:
        """Whether an idle process is gone: it says nothing, so what can be read is the end."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            os.kill(self.pid, signal.SIGKILL)
            self._nursery.reap(self.pid)
            self._requests.close()
            self._replies.close()

    def _send(self, document: Mapping[str, Any]) -> None:
        data = (json.dumps(document) + "\n").encode()
        # A process that has ended is _receive's to report.
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[self._requests.write(data) :]

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """None if the process ended; TimeoutError if it said nothing for that long."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                raise TimeoutError
            data = self._replies.read(1 << 20)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _death(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"errorType": kind, "errorMessage": message}}


def _identity(function: Function) -> dict[str, str]:
    """What Lambda tells a function about itself in the environment."""
    return {
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_LOG_GROUP_NAME": function.log_group,
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "_HANDLER": function.handler,
    }
