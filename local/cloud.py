"""The embedded cloud: the stack of template.yaml, running on this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
import moto.awslambda.models as lambda_models
from botocore.config import Config
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.sqs.models import sqs_backends
from moto.stepfunctions.parser.api import ExecutionStatus
from moto.stepfunctions.parser.models import stepfunctions_parser_backends
from samtranslator.yaml_helper import yaml_parse

from local import iam, strict
from local.asl import Interpreter
from local.automation import Automation
from local.events import EventBus, install_parameter_changes, install_redrive_policy
from local.faults import ABORT, Faults
from local.gate import Gate
from local.google import Google
from local.logs import install_log_groups
from local.metrics import Metrics
from local.patches import Patches
from local.pipe import Pipe, install_states
from local.runtime import TIMEOUT_FLOOR, Function, Runtime, build_layer, build_runtime
from local.ses import ReceiptRule, Ses, SmtpServer
from local.stack import Stack
from local.traces import Daemon

HOST = "127.0.0.1"

# One, because each reads half a megabyte of endpoints.
_session: Any = boto3.session.Session()

# moto keeps its state per process, so a process has room for one cloud.
_running = threading.Lock()


class PortTakenError(Exception):
    """The message names port and purpose."""


class Cloud:
    """AWS (moto), Google and SES on loopback ports, with the stack of one template in it.

    `factor` is real seconds per second of the cloud: it shortens every wait. One cloud per process
    at a time; RuntimeError otherwise. A port that is taken raises PortTakenError.
    """

    aws_url: str
    google: Google
    ses: Ses
    pipe: Pipe
    automation: Automation
    events: EventBus
    metrics: Metrics
    runtime: Runtime
    traces: Daemon
    gate: Gate
    smtp: tuple[str, int]  # host and port

    def __init__(
        self,
        root: Path | None = None,  # the project: template.yaml, statemachines/, functions/, layers/
        *,
        environment: str = "test",
        time_factor: float = 0.02,
        domains: Sequence[str] = ("*",),  # ("*",) = any recipient domain
        parameters: Mapping[str, str] | None = None,  # further template parameters
        aws_port: int = 0,
        smtp_port: int = 0,
        google_port: int = 0,
        directory: Path | None = None,  # logs/ and spool/; a temporary folder by default
        host: str = HOST,  # the address that everything listens on
        timeout_floor: float = TIMEOUT_FLOOR,  # real seconds that an invocation may take at least
        faults: Faults | None = None,
    ) -> None:
        self.root = root or Path(__file__).parent.parent
        self.environment = environment
        self.factor = time_factor
        self._parameters = {
            "Environment": environment,
            "Domains": ",".join(domains),
            **(parameters or {}),
        }
        self._ports = {"AWS": aws_port, "SMTP": smtp_port, "Google": google_port}
        self.host = host
        self._directory = directory
        self._timeout_floor = timeout_floor
        self._injected = faults
        self.faults = faults or Faults()
        self._cleanup = contextlib.ExitStack()
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()
        self._epoch = time.time()

    def __enter__(self) -> Cloud:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Create everything; returns when email can be sent."""
        if not _running.acquire(blocking=False):
            raise RuntimeError("there is an embedded cloud in this process already")
        self._cleanup.callback(_running.release)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process and thread of the cloud and forget its state."""
        self._cleanup.close()

    def _start(self) -> None:
        if self._directory is None:
            self._directory = Path(
                self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ses-mail-"))
            )
        for name, port in self._ports.items():
            _refuse_taken(self.host, name, port)
        self._epoch = time.time()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        logging.getLogger("moto").setLevel(logging.CRITICAL)
        logging.getLogger("samtranslator").setLevel(logging.ERROR)  # of metrics that nobody wants
        # Throttling is in no service's model, on AWS neither.
        warnings.filterwarnings("ignore", "Exception.* does not match an error shape")
        self.google = Google(
            port=self._ports["Google"],
            host=self.host,
            time_factor=self.factor,
            directory=self._directory / "google",
        )
        self.google.start()
        self._cleanup.callback(self.google.stop)
        self._start_aws()
        self.stack = Stack(self.root, self._parameters, self.client)
        self.faults.log = self._directory / "faults.jsonl"
        self.faults.log.unlink(missing_ok=True)
        self._start_functions()
        self._start_automation()
        self._start_events()
        self._start_state_machine()
        self._start_ses()
        self._start_pipe()

    def _start_aws(self) -> None:
        server = ThreadedMotoServer(ip_address=self.host, port=self._ports["AWS"], verbose=False)
        server.start()
        self._cleanup.callback(server.stop)
        port = server.get_host_and_port()[1]
        self.aws_url = f"http://{self.host}:{port}"
        # The setting is the process's, not the server's.
        self._moto_api("config", {"stepfunctions": {"execute_state_machine": True}})
        as_before = {"stepfunctions": {"execute_state_machine": False}}
        self._cleanup.callback(self._moto_api, "config", as_before)
        self._cleanup.callback(self._moto_api, "reset", {})
        patches = Patches()
        self.gate = Gate()
        self.gate.install(patches)
        strict.install(patches)
        install_redrive_policy(patches, self.faults)
        install_states(patches)
        self.metrics = Metrics(
            functions=lambda: self.runtime,
            pipe=lambda: self.pipe,
            executions=self._executions,
            factor=self.factor,
        )
        self.metrics.install(patches)
        install_log_groups(patches, lambda: self.runtime)
        self._cleanup.callback(patches.undo)

    def _start_functions(self) -> None:
        source = yaml_parse((self.root / "template.yaml").read_text())
        home = Path(sys.prefix) / "lambda"
        layers: dict[str, Path] = {}
        for logical_id, resource in source["Resources"].items():
            if resource["Type"] == "AWS::Serverless::LayerVersion":
                folder = resource["Properties"]["ContentUri"]
                layers[folder] = build_layer(self.root / folder, f"build-{logical_id}", home)
        functions = {
            f.name: f
            for f in (
                self._function(logical_id, layers)
                for logical_id in self.stack.of_type("AWS::Lambda::Function")
            )
        }
        assert self._directory
        self.traces = Daemon()
        self._cleanup.callback(self.traces.stop)
        self.runtime = Runtime(
            functions,
            libraries=[build_runtime(home)],
            surroundings=self._surroundings(),
            epoch=self._epoch,
            factor=self.factor,
            directory=self._directory / "logs",
            timeout_floor=self._timeout_floor,
            faults=self._injected,
        )
        self._cleanup.callback(self.runtime.stop)
        runtime = self.runtime

        def invoke(function: Any, event: Any = None) -> tuple[str, bool, str]:
            payload, failed = runtime.invoke(function.function_name, event)
            return payload, failed, ""

        patches = Patches()
        patches.replace(lambda_models.LambdaFunction, "_invoke_lambda", invoke)
        self._cleanup.callback(patches.undo)

    def _start_automation(self) -> None:
        assert self._directory
        self.automation = Automation(
            self.client,
            self.stack.access.statements,
            policies=self.stack.access.policies,
            surroundings=self.runtime.surroundings,
            libraries=self.runtime.libraries,
            epoch=self._epoch,
            factor=self.factor,
            directory=self._directory / "automation",
        )
        patches = Patches()
        self.automation.install(patches)
        self._cleanup.callback(patches.undo)
        self._cleanup.callback(self.automation.end)

    def _function(self, logical_id: str, layers: Mapping[str, Path]) -> Function:
        properties = self.stack.properties(logical_id)
        name = properties["FunctionName"]
        return Function(
            name=name,
            arn=self.stack.attribute(logical_id, "Arn"),
            handler=properties["Handler"],
            code=self.root / properties["Code"]["S3Key"],
            layers=[layers[folder] for folder in properties.get("Layers", [])],
            environment={
                key: str(value)
                for key, value in properties.get("Environment", {}).get("Variables", {}).items()
            },
            timeout=int(properties["Timeout"]),
            memory=int(properties["MemorySize"]),
            log_group=properties.get("LoggingConfig", {}).get("LogGroup", f"/aws/lambda/{name}"),
            statements=self.stack.access.statements(properties["Role"]),
            policies=self.stack.access.policies,
            documents=self.stack.access.documents,
        )

    def _surroundings(self) -> dict[str, str]:
        return {
            # What Lambda sets …
            "AWS_REGION": iam.REGION,
            "AWS_DEFAULT_REGION": iam.REGION,
            "AWS_ACCESS_KEY_ID": "function",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_SESSION_TOKEN": "local",
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TZ": ":UTC",
            "LAMBDA_TASK_ROOT": str(self.root / "functions"),  # without it nothing is traced
            # … and what leads to this machine instead of AWS and Google.
            "AWS_ENDPOINT_URL": self.aws_url,
            "AWS_XRAY_DAEMON_ADDRESS": self.traces.address,
            "HTTPS_PROXY": self.google.url,
            "HTTPLIB2_CA_CERTS": str(self.google.ca_file),
        }

    def _start_state_machine(self) -> None:
        (logical_id,) = self.stack.of_type("AWS::StepFunctions::StateMachine")
        role = self.stack.access.role(self.stack.properties(logical_id)["RoleArn"])
        interpreter = Interpreter(
            self.factor,
            self.now,
            self.aws_url,
            iam.REGION,
            role.check,
            self.events.execution_ended,
            self._on_client,
        )
        interpreter.install()
        self._cleanup.callback(interpreter.uninstall)
        self._cleanup.callback(self._abort_executions)

    def _start_events(self) -> None:
        self.events = EventBus(
            {key: self.stack.properties(key) for key in self.stack.of_type("AWS::Events::Rule")},
            self.runtime.invoke,
            self.now,
            self.factor,
            self.faults,
        )
        self._cleanup.callback(self.events.stop)
        patches = Patches()
        install_parameter_changes(patches, self.events)
        self._cleanup.callback(patches.undo)

    def _on_client(self, client: Any) -> None:
        if self._injected:
            client.meta.events.register("before-send.lambda.Invoke", self._abort)
            self._injected.suffer_state_machine(client)

    def _abort(self, request: Any, **_: Any) -> None:
        """Stop the execution that is about to invoke a function, if it is struck."""
        payload = json.loads(request.body)
        if self.faults.strike("states:Execution", "operator", payload["messageId"]) == ABORT:
            name = payload["executionArn"].rsplit(":", 1)[-1]
            for execution in self._executions():
                if execution.name == name:
                    execution.stop(stop_date=datetime.now(UTC), error="Aborted", cause="injected")

    def _start_ses(self) -> None:
        (logical_id,) = self.stack.of_type("AWS::SES::ReceiptRule")
        rule = self.stack.properties(logical_id)["Rule"]
        (action,) = (item["S3Action"] for item in rule["Actions"])
        self.ses = Ses(
            ReceiptRule(
                recipients=rule["Recipients"],
                enabled=rule["Enabled"],
                scan=rule["ScanEnabled"],
                bucket=action["BucketName"],
                prefix=action.get("ObjectKeyPrefix", ""),
                topic=action["TopicArn"],
            ),
            self.client,
            self.now,
        )
        self.ses.install()
        self._cleanup.callback(self.ses.uninstall)
        server = SmtpServer(self.ses, self.host, self._ports["SMTP"])
        self._cleanup.callback(server.stop)
        server.start()
        self.smtp = server.address

    def _start_pipe(self) -> None:
        (logical_id,) = self.stack.of_type("AWS::Pipes::Pipe")
        properties = self.stack.properties(logical_id)
        queue = properties["Source"].rsplit(":", 1)[-1]
        target = properties["Target"].rsplit(":", 1)[-1]
        queue_url = self.client("sqs").get_queue_url(QueueName=queue)["QueueUrl"]
        attributes = self.client("sqs").get_queue_attributes(
            QueueUrl=queue_url, AttributeNames=["VisibilityTimeout"]
        )["Attributes"]
        self.pipe = Pipe(
            name=properties["Name"],
            queue_url=queue_url,
            queue_arn=properties["Source"],
            batch_size=properties["SourceParameters"]["SqsQueueParameters"]["BatchSize"],
            visibility=int(attributes["VisibilityTimeout"]) * self.factor,
            invoke=lambda event: self.runtime.invoke(target, event),
            client=self.client,
            faults=self.faults,
        )
        self._cleanup.callback(self.pipe.stop)
        self.pipe.start()

    def _abort_executions(self) -> None:
        # Before the interpreter wakes their threads from retry waits, or those would go on.
        for execution in self._running():
            if execution.exec_worker and execution.exec_worker.env:
                execution.stop(stop_date=datetime.now(UTC), error="stopped", cause="stopped")

    def _moto_api(self, path: str, document: Mapping[str, Any]) -> None:
        connection = http.client.HTTPConnection(self.aws_url.removeprefix("http://"))
        connection.request("POST", f"/moto-api/{path}", json.dumps(document))
        answer = connection.getresponse()
        if answer.status >= 300:
            raise RuntimeError(f"moto's {path}: {answer.status} {answer.read()!r}")
        connection.close()

    # -- the ways in -------------------------------------------------------------------------------

    def send(
        self,
        raw: bytes,
        sender: str,
        recipients: Sequence[str],
        *,
        verdicts: Mapping[str, str] | None = None,  # {"spam": "FAIL", "virus":, "spf":, …}
        dmarc_policy: str | None = None,
        message_id: str | None = None,
        timestamp: float | None = None,  # epoch seconds of the cloud's clock
    ) -> str:
        """Do what SES does with an email that its receipt rule matches; returns the messageId."""
        return self.ses.receive(
            raw, sender, recipients, verdicts or {}, dmarc_policy, message_id, timestamp
        )

    def publish(self, notification: Mapping[str, Any] | str) -> None:
        """Publish to the topic as SES would (a string goes out as it is)."""
        text = notification if isinstance(notification, str) else json.dumps(notification)
        self.ses.publish(text)

    def notification(self, message_id: str) -> dict[str, Any]:
        """A fresh copy of the notification that SES published for an email."""
        notification: dict[str, Any] = json.loads(self.ses.notifications[message_id])
        return notification

    def put_rule(
        self, pattern: str, action: str, target: str | Sequence[str] = "", enabled: bool = True
    ) -> None:
        """Put a routing rule as an operator does; a list of targets becomes a list attribute."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        item: dict[str, Any] = {
            "PK": {"S": f"ROUTE#{pattern}"},
            "SK": {"S": "RULE#v1"},
            "entity_type": {"S": "ROUTE"},
            "recipient": {"S": pattern},
            "action": {"S": action},
            "target": {"S": target}
            if isinstance(target, str)
            else {"L": [{"S": address} for address in target]},
            "enabled": {"BOOL": enabled},
            "created_at": {"S": at},
            "updated_at": {"S": at},
            "description": {"S": f"{action} for {pattern}"},
        }
        self.client("dynamodb").put_item(TableName=self.resource("RoutingTable"), Item=item)

    def add_mailbox(self, address: str, default: bool = False) -> str:
        """Create a mailbox and put its credentials into its parameter; returns the name."""
        name = (
            f"/ses-mail/{self.environment}/gmail-token"
            if default
            else f"/ses-mail/{self.environment}/gmail-tokens/{parameter_name(address)}"
        )
        self.client("ssm").put_parameter(
            Name=name,
            Value=json.dumps(self.google.add_mailbox(address)),
            Type="SecureString",
            Overwrite=True,
        )
        return name

    # -- what can be seen --------------------------------------------------------------------------

    def now(self) -> float:
        """Epoch seconds of the cloud's own, faster clock."""
        return self._epoch + (time.time() - self._epoch) / self.factor

    def pass_time(self, **span: float) -> None:
        """Let everything measured and executed so far be older by a `timedelta(**span)`, in which
        nothing happened."""
        back = timedelta(**span)
        self.metrics.age(back)
        for execution in self._executions():
            execution.start_date -= back
            execution.stop_date = execution.stop_date and execution.stop_date - back

    @property
    def google_url(self) -> str:
        return self.google.url

    @property
    def bounces(self) -> list[dict[str, Any]]:
        """What SendBounce accepted: {"to", "sender", "recipients", "messageId", "request"}; "to" is
        the envelope sender of the original, "messageId" the original's."""
        return self.ses.bounces

    @property
    def outputs(self) -> dict[str, str]:
        return self.stack.outputs

    def client(self, service: str) -> Any:
        """A boto3 client of this cloud, with every right."""
        with self._clients_lock:
            if service not in self._clients:
                self._clients[service] = _session.client(
                    service,
                    region_name=iam.REGION,
                    endpoint_url=self.aws_url,
                    aws_access_key_id="developer",
                    aws_secret_access_key="local",
                    config=Config(max_pool_connections=50, retries={"total_max_attempts": 1}),
                )
            return self._clients[service]

    def resource(self, logical_id: str) -> str:
        """Physical id of a resource, as `!Ref` gives it."""
        return self.stack.physical_id(logical_id)

    def wait_idle(self, timeout: float = 300.0) -> None:
        """Wait until queue, pipe and executions are at rest; TimeoutError after real seconds."""
        deadline = time.monotonic() + timeout
        while busy := self._busy():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s still busy: {busy}")
            time.sleep(0.02)

    def _busy(self) -> str:
        # Waiting or in flight, in one look: one of them may turn into the other.
        messages = len(self.pipe.queue._messages)
        running = [e.name for e in self._running()]
        events = self.events.under_way
        automations = self.automation.under_way
        if messages or running or events or automations:
            return (
                f"{messages} waiting or in flight, {events} events, "
                f"{automations} automations, running: {', '.join(running[:5])}"
            )
        return ""

    def _queue(self, logical_id: str) -> Any:
        name = self.resource(logical_id).rsplit("/", 1)[-1]
        return sqs_backends[iam.ACCOUNT][iam.REGION].get_queue(name)

    def empty(self, logical_id: str) -> None:
        """Take all messages out of a queue, those in flight too, as often as one likes: SQS's own
        purge works once a minute."""
        queue = self._queue(logical_id)
        queue._messages.clear()
        queue.pending_messages.clear()

    def show(self, logical_id: str) -> None:
        """Let the time pass for which messages of a queue that were received cannot be seen."""
        for message in self._queue(logical_id)._messages:
            message.visible_at = 0

    def _executions(self) -> list[Any]:
        # moto's own list: the API's is sorted and paged, and this is asked for very often.
        backend = stepfunctions_parser_backends[iam.ACCOUNT][iam.REGION]
        return [e for machine in backend.state_machines for e in machine.executions]

    def _running(self) -> list[Any]:
        """Those that are just being started, which have no status yet, too."""
        running = (None, ExecutionStatus.RUNNING)
        return [e for e in self._executions() if e.exec_status in running]

    def executions(self, message_id: str | None = None) -> list[dict[str, Any]]:
        """DescribeExecution of every execution (of one email), oldest first; `input` and `output`
        parsed."""
        described = [
            self.client("stepfunctions").describe_execution(executionArn=e.execution_arn)
            for e in self._executions()
            if message_id is None or e.name == message_id or e.name.startswith(f"{message_id}-")
        ]
        for execution in described:
            for name in ("input", "output"):
                if name in execution:
                    execution[name] = json.loads(execution[name])
        return sorted(described, key=lambda execution: execution["startDate"])

    def history(self, execution_arn: str) -> list[dict[str, Any]]:
        """The execution's history events, complete."""
        pages = self.client("stepfunctions").get_paginator("get_execution_history")
        return [
            event for page in pages.paginate(executionArn=execution_arn) for event in page["events"]
        ]

    def logs(self, function: str) -> list[dict[str, Any]]:
        """JSON log lines of a function (named in full, or as in `router`), oldest first."""
        names = [function, f"ses-mail-{function}-{self.environment}"]
        (name,) = (name for name in names if name in self.runtime.functions)
        lines = []
        for path in self.runtime.log_files(name):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        lines.append(entry)
        return sorted(lines, key=lambda entry: str(entry.get("timestamp", "")))

    def dead_letters(self, logical_id: str) -> list[dict[str, Any]]:
        """Bodies (parsed if they are JSON) of a queue's messages, which stay there untouched."""
        bodies = []
        for message in list(self._queue(logical_id)._messages):
            try:
                bodies.append(json.loads(message.body))
            except json.JSONDecodeError:
                bodies.append({"body": message.body})
        return bodies


def parameter_name(mailbox: str) -> str:
    """A mailbox as the last part of an SSM parameter name: `anna@x` becomes `anna_40x`."""
    return re.sub(r"[^a-zA-Z0-9.-]", _escape, mailbox)


def _escape(match: re.Match[str]) -> str:
    return "".join(f"_{byte:02x}" for byte in match[0].encode())


def _refuse_taken(host: str, name: str, port: int) -> None:
    """Asked before anything starts: moto would end the process on a taken port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(
                f"Port {port} for {name} cannot be had on {host}: {error.strerror}"
            ) from error
