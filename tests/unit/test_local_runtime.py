"""Worker processes: isolation, errors, time-outs, death."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from local import runtime as runtime_module
from local.runtime import Function, Runtime, build_layer

HANDLERS = """
import json, os, sys, time

def handler(event, context):
    return globals()[event["do"]](event, context)

def echo(event, context):
    return {"event": event, "id": len(context.aws_request_id)}

def environment(event, context):
    return dict(os.environ)

def modules(event, context):
    try:
        import moto
    except ModuleNotFoundError as error:
        return str(error)

def clock(event, context):
    import ses_mail.clock
    return ses_mail.clock.now()

def remaining(event, context):
    return context.get_remaining_time_in_millis()

class OddError(Exception):
    pass

def fail(event, context):
    raise OddError("so \\x00 odd")

def not_json(event, context):
    return {1, 2}

def hang(event, context):
    time.sleep(60)

def leave(event, context):
    os._exit(3)

def system_exit(event, context):
    sys.exit(1)

def log(event, context):
    print(json.dumps({"message": "hello"}))
    return os.getpid()

def large(event, context):
    data = bytearray(50_000_000)
    return len(event["data"])
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    root = tmp_path_factory.mktemp("runtime")
    code = root / "functions"
    (code / "ses_mail").mkdir(parents=True)
    (code / "app.py").write_text(HANDLERS)
    (code / "broken.py").write_text("import no_such_module\n")
    (code / "ses_mail" / "__init__.py").touch()
    (code / "ses_mail" / "clock.py").write_text(
        "import time\n\ndef now():\n    return time.time()\n"
    )
    library = root / "library"
    library.mkdir()
    # Only what iam.py needs to install itself; the real folder is built from PyPI.
    import botocore

    site = Path(botocore.__file__).parent.parent
    for name in ("botocore", "jmespath", "dateutil", "urllib3", "six.py"):
        (library / name).symlink_to(site / name)

    def function(name: str, handler: str) -> Function:
        return Function(
            name=name,
            arn=f"arn:aws:lambda:r:1:function:{name}",
            handler=handler,
            code=code,
            layers=[],
            environment={"GIVEN": "by the template"},
            timeout=30,
            memory=512,
            log_group=f"/aws/lambda/{name}",
            statements=[],
        )

    made = Runtime(
        {"app": function("app", "app.handler"), "broken": function("broken", "broken.handler")},
        libraries=[library],
        surroundings={"PATH": os.environ["PATH"], "AWS_REGION": "r"},
        epoch=1000.0,
        factor=0.01,
        directory=root / "logs",
        workers=2,
    )
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("event", "answer"),
    [
        ({"do": "echo", "é": "\u2028"}, {"event": {"do": "echo", "é": "\u2028"}, "id": 36}),
        ({"do": "modules"}, "No module named 'moto'"),
        ({"do": "large", "data": "x" * 3_000_000}, 3_000_000),
    ],
)
def test_answers(runtime, event, answer):
    assert runtime.invoke("app", event) == (json.dumps(answer), False)


def test_environment_is_the_templates_and_lambdas(runtime):
    names = json.loads(runtime.invoke("app", {"do": "environment"})[0])
    assert names.pop("GIVEN") == "by the template"
    names.pop("LC_CTYPE", None)  # Python's own, where the locale is C
    assert set(names) == {
        "PATH",
        "AWS_REGION",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
    }


@pytest.mark.parametrize(
    ("function", "event", "kind", "message"),
    [
        ("app", {"do": "fail"}, "OddError", "so \x00 odd"),
        ("app", {"do": "not_json"}, "TypeError", "set"),
        ("app", {"do": "leave"}, "Runtime.ExitError", "Runtime exited"),
        ("app", {"do": "system_exit"}, "Runtime.ExitError", "Runtime exited"),
        ("app", {"do": "missing"}, "KeyError", "missing"),
        ("broken", {}, "ModuleNotFoundError", "no_such_module"),
    ],
)
def test_errors(runtime, function, event, kind, message):
    payload, failed = runtime.invoke(function, event)
    assert failed
    assert json.loads(payload)["errorType"] == kind
    assert message in json.loads(payload)["errorMessage"]
    assert json.loads(runtime.invoke("app", {"do": "echo"})[0])["id"] == 36  # others go on


def test_the_stack_trace_begins_at_the_handler(runtime):
    (first, *_) = json.loads(runtime.invoke("app", {"do": "fail"})[0])["stackTrace"]
    assert "app.py" in first


def test_time_out(runtime, monkeypatch):
    monkeypatch.setattr(runtime, "timeout_floor", 0.2)
    pool = runtime_module._Pool(runtime, runtime.functions["app"], 1)
    worker = pool.take()
    answer = worker.invoke({"do": "hang"})
    pool.give_back(worker)
    assert answer["error"]["errorType"] == "Sandbox.Timedout"
    assert answer["error"]["errorMessage"].endswith("Task timed out after 30.00 seconds")
    assert pool.take().invoke({"do": "echo"})["result"]["id"] == 36  # by a new process
    pool.stop()


def test_clock_runs_faster(runtime):
    before = time.time()
    cloud = json.loads(runtime.invoke("app", {"do": "clock"})[0])
    assert 1000 + (before - 1000) * 100 <= cloud <= 1000 + (time.time() - 1000) * 100


def test_remaining_time_starts_at_the_real_time_out(runtime):
    assert 25_000 < json.loads(runtime.invoke("app", {"do": "remaining"})[0]) <= 30_000


def test_logs_are_in_files_when_the_answer_is_there(runtime):
    runtime.invoke("app", {"do": "log"})
    text = "".join(path.read_text() for path in runtime.log_files("app"))
    assert '{"message": "hello"}\n' in text


def test_a_worker_that_died_idle_gets_no_event(runtime):
    pid = json.loads(runtime.invoke("app", {"do": "log"})[0])
    os.kill(pid, signal.SIGKILL)
    ended = ["ps", "-o", "stat=", "-p", str(pid)]
    while not subprocess.check_output(ended, text=True).startswith("Z"):
        time.sleep(0.01)
    answer, failed = runtime.invoke("app", {"do": "log"})
    assert not failed
    assert json.loads(answer) != pid


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_of_the_invocation(runtime):
    runtime.invoke("app", {"do": "large", "data": ""})
    idle, peak = runtime.peak_memory("app")
    assert peak - idle > 40_000_000


def test_a_layer_that_cannot_be_built_says_why(tmp_path):
    (tmp_path / "Makefile").write_text("build-X:\n\t@echo no such package >&2; false\n")
    (tmp_path / "requirements.txt").touch()
    with pytest.raises(RuntimeError, match="no such package"):
        build_layer(tmp_path, "build-X", tmp_path / "home")


def test_workers_end_with_the_runtime(runtime):
    pid = json.loads(runtime.invoke("app", {"do": "log"})[0])
    runtime.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
