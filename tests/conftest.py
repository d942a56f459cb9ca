"""What the tests share: AWS (moto over loopback HTTP), SES's SendBounce, the small Google, time."""

import io
import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import botocore.endpoint
import httplib2
import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Powertools reads these once, when `observe` is first imported.
os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "SESMail/test"
os.environ["POWERTOOLS_SERVICE_NAME"] = "tests"

from ses_mail import clients, clock

from local.google import Google

# Time is nothing that a test asserts, and a run of the gate means the same for everybody; to search
# on, `pytest --hypothesis-profile=search`.
settings.register_profile("search", deadline=None, max_examples=3000)
settings.register_profile("ses-mail", deadline=None, derandomize=True)
settings.load_profile("ses-mail")

ROOT = Path(__file__).parent.parent
# Not the embedded cloud's: moto keeps regions apart, so both may live in one process.
REGION = "eu-north-1"
ACCOUNT = "123456789012"
CLIENTS = (
    clients.dynamodb,
    clients.s3,
    clients.ses,
    clients.sqs,
    clients.ssm,
    clients.stepfunctions,
)


# Each of these folders has one embedded cloud for all its files, and the first one takes longest.
_ONE_PROCESS = ("workflow", "runbooks", "commands")
# Share the folder .local/.
_MAKE_LOCAL = ("test_local.py", "test_local_serve.py")


class _ByProcess(LoadScopeScheduling):
    """With `-n`: what shares something stays in one process, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        if path.parent.name in _ONE_PROCESS:
            return path.parent.name
        return "make local" if path.name in _MAKE_LOCAL else path.name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    config.option.loadscopereorder = False  # what has most tests does not take longest
    return _ByProcess(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n` the longest ones start first, or the others would wait for them."""
    if hasattr(config, "workerinput"):
        order = (*_ONE_PROCESS[:1], "e2e", *_ONE_PROCESS[1:])
        items.sort(key=lambda item: [*order, item.path.parent.name].index(item.path.parent.name))


# Their tests run the functions in this process; the others' never do, and with counting
# tests/commands/test_replay.py takes 1.3 times the CPU time (medians of 3).
_COUNTED = ("unit", "functions")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """With `--cov` only what can be covered is counted."""
    plugin: Any = item.config.pluginmanager.getplugin("_cov")
    counting = plugin and plugin.cov_controller
    if not counting or item.path.parent.name in _COUNTED:
        return (yield)
    counting.pause()
    try:
        return (yield)
    finally:
        counting.resume()


def _forget_clients() -> None:
    for client in CLIENTS:
        client.cache_clear()


@pytest.fixture
def event() -> Callable[..., Any]:
    """`event("router", verdict="virus")`: the sample event of that name, some fields replaced."""

    def load(name: str, **changes: Any) -> Any:
        sample = json.loads((ROOT / "events" / f"{name}.json").read_text())
        return {**sample, **changes} if changes else sample

    return load


# -- time ------------------------------------------------------------------------------------------


class Clock:
    """The domain's time, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1795514405.0  # 2026-11-24T10:00:05Z, 5 s after the sample events' email

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """ses_mail's clock under the test's control."""
    stopped = Clock()
    monkeypatch.setattr(clock, "now", stopped)
    return stopped


# -- AWS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ses_api() -> Iterator["SesApi"]:
    with SesApi() as api:
        yield api


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of AWS. State lasts for the session, so every test makes resources of its own."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    _forget_clients()
    yield f"http://{host}:{port}"
    _forget_clients()
    server.stop()


@pytest.fixture
def aws(moto: str, ses_api: "SesApi", monkeypatch: pytest.MonkeyPatch) -> Iterator["Aws"]:
    """An account with the resources of one stack, each made when it is first asked for.

    `ses_mail.clients` lead there, and nothing of the developer's own AWS set-up does anything.
    """
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": moto,
        "AWS_ENDPOINT_URL_SES": ses_api.url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    # The waits between the client's own retries.
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None))
    ses_api.reset()
    account = Aws(f"t{uuid.uuid4().hex[:10]}", ses_api)
    yield account
    account.wire.cut()


@dataclass
class Aws:
    """One stack's resources under an environment name that no other test has."""

    environment: str
    ses: "SesApi"

    @cached_property
    def wire(self) -> "Wire":
        return Wire()

    @cached_property
    def routing_table(self) -> str:
        return self._table(f"ses-email-routing-{self.environment}")

    @cached_property
    def deliveries_table(self) -> str:
        return self._table(f"ses-mail-deliveries-{self.environment}")

    @cached_property
    def bucket(self) -> str:
        name = f"ses-mail-storage-{ACCOUNT}-{self.environment}"
        clients.s3().create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        return name

    @cached_property
    def input_dlq_url(self) -> str:
        name = f"ses-email-input-dlq-{self.environment}"
        return clients.sqs().create_queue(QueueName=name)["QueueUrl"]

    @cached_property
    def gmail_forwarder_dlq_url(self) -> str:
        name = f"ses-gmail-forwarder-dlq-{self.environment}"
        return clients.sqs().create_queue(QueueName=name)["QueueUrl"]

    @cached_property
    def state_machine_arn(self) -> str:
        answer = clients.stepfunctions().create_state_machine(
            name=f"ses-mail-process-email-{self.environment}",
            definition=json.dumps({"StartAt": "End", "States": {"End": {"Type": "Succeed"}}}),
            roleArn=f"arn:aws:iam::{ACCOUNT}:role/process-email",
        )
        return answer["stateMachineArn"]

    @property
    def token_parameter(self) -> str:
        return f"/ses-mail/{self.environment}/gmail-token"

    @property
    def mailbox_token_prefix(self) -> str:
        return f"/ses-mail/{self.environment}/gmail-tokens/"

    def put_rule(self, pattern: str, action: Any, target: Any = None, **more: Any) -> None:
        """A routing rule as operators write it."""
        rule = {"entity_type": "ROUTE", "recipient": pattern, "action": action, "enabled": True}
        if target is not None:
            rule["target"] = target
        key = {"PK": f"ROUTE#{pattern}", "SK": "RULE#v1"}
        clients.dynamodb().put_item(
            TableName=self.routing_table, Item=_item({**key, **rule, **more})
        )

    def put_email(self, raw: bytes, key: str = "emails/o3vr") -> dict[str, Any]:
        """Store an email as SES does; returns what the fetcher says of it."""
        answer = clients.s3().put_object(Bucket=self.bucket, Key=key, Body=raw)
        return {
            "bucket": self.bucket,
            "key": key,
            "size": len(raw),
            "etag": answer["ETag"],
            "received": 0,
        }

    def put_token(self, fields: Any, parameter: str | None = None) -> str:
        """Put credentials (text, or an object for JSON) into a parameter; the default one if
        unnamed."""
        name = parameter or self.token_parameter
        clients.ssm().put_parameter(
            Name=name,
            Value=fields if isinstance(fields, str) else json.dumps(fields),
            Type="SecureString",
            Overwrite=True,
        )
        return name

    def deliveries(self) -> dict[str, dict[str, Any]]:
        """The deliveries table's items under their sort keys."""
        return {item["SK"]: item for item in self._recorded()}

    def token_checks(self) -> dict[str, dict[str, Any]]:
        """The deliveries table's items about tokens under the parameters' names."""
        return {item["PK"].removeprefix("TOKEN#"): item for item in self._recorded()}

    def _recorded(self) -> list[dict[str, Any]]:
        items = clients.dynamodb().scan(TableName=self.deliveries_table)["Items"]
        return [{n: TypeDeserializer().deserialize(v) for n, v in i.items()} for i in items]

    def put_delivery(self, item: Mapping[str, Any]) -> None:
        clients.dynamodb().put_item(TableName=self.deliveries_table, Item=_item(item))

    def dead_letters(self) -> list[dict[str, Any]]:
        """Messages of the input DLQ: {body, MessageAttributes, …}, each only once."""
        answer = clients.sqs().receive_message(
            QueueUrl=self.input_dlq_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        )
        return [{**m, "body": json.loads(m["Body"])} for m in answer.get("Messages", [])]

    def executions(self) -> dict[str, Any]:
        """The inputs of all executions under their names."""
        stepfunctions = clients.stepfunctions()
        found = stepfunctions.list_executions(stateMachineArn=self.state_machine_arn)
        return {
            e["name"]: json.loads(
                stepfunctions.describe_execution(executionArn=e["executionArn"])["input"]
            )
            for e in found["executions"]
        }

    def _table(self, name: str) -> str:
        clients.dynamodb().create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": "PK", "KeyType": "HASH"},
                {"AttributeName": "SK", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "PK", "AttributeType": "S"},
                {"AttributeName": "SK", "AttributeType": "S"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        return name


def _item(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: TypeSerializer().serialize(value) for name, value in plain.items()}


class Wire:
    """The way between boto3's clients and AWS: counts what passes, and breaks what it is told to.

    Operations are named as in `dynamodb.BatchGetItem`.
    """

    def __init__(self) -> None:
        self._hooks: list[tuple[Any, str, Any]] = []

    def cut(self) -> None:
        """Undo everything."""
        for client, name, hook in self._hooks:
            client.meta.events.unregister(name, hook)
        self._hooks.clear()

    def count(self, service: str) -> Counter[str]:
        """Requests by operation from now on, those included that are broken."""
        counted: Counter[str] = Counter()

        def hook(event_name: str, **_: Any) -> None:
            counted[event_name.rpartition(".")[2]] += 1

        # Once per attempt of the client; `before-send` hooks after one that raises are not called.
        self._register(f"request-created.{service}", hook)
        return counted

    def answer(self, operation: str, status: int, code: str, times: int | None = None) -> None:
        """AWS refuses, the next `times` times or always."""
        error = {"__type": code, "message": f"{code} (injected)"}
        body = (
            f"<Error><Code>{code}</Code><Message>{code} (injected)</Message></Error>".encode()
            if operation.startswith("s3.")
            else json.dumps(error).encode()
        )
        self.reply(operation, lambda _: (status, body), times)

    def reply(
        self,
        operation: str,
        make: Callable[[Any], tuple[int, bytes]],
        times: int | None = None,
    ) -> None:
        """Answer in AWS's place: `make(request)` returns status and body."""

        def work(request: Any) -> AWSResponse:
            status, body = make(request)
            return AWSResponse(request.url, status, {}, _Raw(body))

        self._intercept(operation, work, times)

    def lose_answer(self, operation: str, times: int | None = None, skip: int = 0) -> None:
        """AWS does what it is asked, but its answer gets lost; the first `skip` calls pass."""

        def work(request: Any) -> AWSResponse:
            URLLib3Session().send(request)
            raise ConnectionClosedError(endpoint_url=request.url)

        self._intercept(operation, work, times, skip)

    def lose_request(self, operation: str, times: int | None = None, skip: int = 0) -> None:
        """The request never arrives; the first `skip` calls pass."""

        def work(request: Any) -> AWSResponse:
            raise ConnectionClosedError(endpoint_url=request.url)

        self._intercept(operation, work, times, skip)

    def change(self, operation: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Let `change(parsed)` alter every answer."""

        def hook(parsed: dict[str, Any], **_: Any) -> None:
            change(parsed)

        self._register(f"after-call.{operation}", hook)

    def _intercept(
        self,
        operation: str,
        work: Callable[[Any], AWSResponse],
        times: int | None,
        skip: int = 0,
    ) -> None:
        calls = 0

        def hook(request: Any, **_: Any) -> AWSResponse | None:
            nonlocal calls
            calls += 1
            due = calls > skip and (times is None or calls <= skip + times)
            return work(request) if due else None

        self._register(f"before-send.{operation}", hook)

    def _register(self, name: str, hook: Any) -> None:
        client = getattr(clients, name.split(".")[1])()
        client.meta.events.register(name, hook)
        self._hooks.append((client, name, hook))


class _Raw(io.BytesIO):
    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


# -- SES's SendBounce, which moto lacks ------------------------------------------------------------


@dataclass(frozen=True)
class Bounce:
    """One SendBounce that SES accepted; `fields` are the query protocol's, flat."""

    fields: dict[str, str]

    @property
    def recipients(self) -> list[str]:
        found = {
            int(name.split(".")[2]): value
            for name, value in self.fields.items()
            if name.startswith("BouncedRecipientInfoList.member.") and name.endswith(".Recipient")
        }
        return [found[number] for number in sorted(found)]


class SesApi:
    """Answers SendBounce in the query protocol; `faults` are used up one by one.

    A fault is (HTTP status, code), or "lost": the bounce goes out, but not the answer.
    """

    def __init__(self) -> None:
        self.bounces: list[Bounce] = []
        self.faults: list[tuple[int, str] | str] = []
        self.requests = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                answer = api.serve({n: v[0] for n, v in parse_qs(body).items()})
                if answer is None:
                    return
                status, xml = answer
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(xml.encode())))
                self.end_headers()
                self.wfile.write(xml.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "SesApi":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        self.bounces, self.faults, self.requests = [], [], 0

    def serve(self, fields: dict[str, str]) -> tuple[int, str] | None:
        self.requests += 1
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, tuple):
            status, code = fault
            kind = "Sender" if status < 500 else "Receiver"
            return status, (
                '<ErrorResponse xmlns="http://ses.amazonaws.com/doc/2010-12-01/"><Error>'
                f"<Type>{kind}</Type><Code>{code}</Code><Message>{code} (injected)</Message>"
                "</Error><RequestId>r</RequestId></ErrorResponse>"
            )
        if fields["Action"] != "SendBounce":
            raise AssertionError(f"unexpected {fields['Action']}")
        self.bounces.append(Bounce(fields))
        if fault == "lost":
            return None
        return 200, (
            '<SendBounceResponse xmlns="http://ses.amazonaws.com/doc/2010-12-01/">'
            f"<SendBounceResult><MessageId>bounce-{len(self.bounces)}</MessageId>"
            "</SendBounceResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata>"
            "</SendBounceResponse>"
        )


# -- Google ----------------------------------------------------------------------------------------


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """Google, which the unmodified client reaches as a proxy."""
    with Google(directory=tmp_path / "google") as server:
        for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", server.url)
        # HTTPLIB2_CA_CERTS is read once, at import.
        monkeypatch.setattr(httplib2, "CA_CERTS", str(server.ca_file))
        # The waits between google-auth's own retries of the token endpoint.
        monkeypatch.setattr(
            "google.auth._exponential_backoff.time", SimpleNamespace(sleep=lambda _: None)
        )
        yield server


# -- Lambda ----------------------------------------------------------------------------------------


@dataclass
class LambdaContext:
    """What a handler sees of its invocation."""

    function_name: str = "ses-mail-test"
    milliseconds: int = 300_000
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:ses-mail-test"
    aws_request_id: str = "5f0e4b1c-8d4e-4b1c-8d4e-7d1f4b1c5f0e"

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


@pytest.fixture
def context() -> LambdaContext:
    return LambdaContext()


@dataclass
class Logs:
    """What a handler writes to its log: lines, and metrics in the embedded metric format."""

    _stream: io.StringIO
    _capture: pytest.CaptureFixture[str]
    _printed: str = ""

    def read(self, message: str | None = None) -> list[dict[str, Any]]:
        """Log lines so far, all or those with that message."""
        found = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in found if message in (None, line["message"])]

    def clear(self) -> None:
        """Forget the lines so far."""
        self._stream.seek(0)
        self._stream.truncate()

    def metrics(self) -> dict[str, float]:
        """Sums of all metrics so far."""
        sums: Counter[str] = Counter()
        for name, values in self._published():
            sums[name] += sum(values)
        return dict(sums)

    def values(self, metric: str) -> list[float]:
        """Every value of one metric so far, in order."""
        return [value for name, values in self._published() if name == metric for value in values]

    def _published(self) -> Iterator[tuple[str, list[float]]]:
        for line in self._metrics().splitlines():
            blob = json.loads(line)
            for directive in blob["_aws"]["CloudWatchMetrics"]:
                for metric in directive["Metrics"]:
                    values = blob[metric["Name"]]
                    yield metric["Name"], values if isinstance(values, list) else [values]

    def text(self) -> str:
        """Everything, for what must not be in it."""
        return self._stream.getvalue() + self._metrics()

    def _metrics(self) -> str:
        self._printed += self._capture.readouterr().out
        return self._printed


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Logs]:
    """Read what `ses_mail.observe` logs instead of printing it."""
    from ses_mail import observe

    stream = io.StringIO()
    handlers: Sequence[Any] = observe.logger.handlers
    before = [handler.setStream(stream) for handler in handlers]
    observe.logger.clear_state()
    yield Logs(stream, capsys)
    for handler, old in zip(handlers, before, strict=True):
        handler.setStream(old)
