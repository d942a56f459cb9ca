"""The scripts of the automation documents in this process, on a clock of the test's."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3

from local.automation import given, substituted
from tests.template.contract import Project

ROOT = Path(__file__).parents[2]
ATTRIBUTES = ("MessageId", "Action", "Error")


class Killed(BaseException):
    """The process is gone: no `except` and no call of the script comes after it."""


class Clock:
    """Moves when somebody sleeps, and a little at each call."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.cost: float | None = None  # of each call, if not by chance
        self._random = random.Random(seed)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def work(self) -> None:
        """As long as a call of SQS may take."""
        by_chance = self._random.choice([0, 0, 0.001, 0.002, 0.01])
        self.now += by_chance if self.cost is None else self.cost


@dataclass
class Watch:
    """Sees every call to SQS that a run of the script makes, and ends the run before or after one.

    `kill_at` counts the moments before and after each call from 0; `refused` are bodies that SQS
    does not take; `on_sent` hears of each body that it took.
    """

    clock: Clock
    kill_at: int | None = None
    refused: Collection[str] = ()
    on_sent: Callable[[str], object] | None = None
    moments: int = 0
    killed: bool = False
    sends: list[float] = field(default_factory=list)  # when SQS was asked
    received: list[str] = field(default_factory=list)  # receipt handles
    deleted: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)  # sent and not deleted
    _params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[str]:
        """Receipt handles of what the run received and did not delete."""
        return [handle for handle in self.received if handle not in self.deleted]

    def install(self) -> None:
        """On every client that is made from now on."""
        boto3.setup_default_session()
        assert boto3.DEFAULT_SESSION
        boto3.DEFAULT_SESSION.events.register("before-parameter-build.sqs", self._before)
        boto3.DEFAULT_SESSION.events.register("after-call.sqs", self._after)

    def _moment(self) -> None:
        if self.killed or self.moments == self.kill_at:
            self.killed = True
            raise Killed
        self.moments += 1

    def _before(self, model: Any, params: dict[str, Any], **_: Any) -> None:
        self._moment()
        self._params = dict(params)
        params.pop("WaitTimeSeconds", None)  # it waits on the test's clock instead
        if model.name == "SendMessage":
            self.sends.append(self.clock.now)
            if params["MessageBody"] in self.refused:
                params["QueueUrl"] += "-gone"

    def _after(self, model: Any, parsed: Mapping[str, Any], http_response: Any, **_: Any) -> None:
        self.clock.work()
        if http_response.status_code == 200:
            if model.name == "ReceiveMessage":
                self.received += [m["ReceiptHandle"] for m in parsed.get("Messages", [])]
                if not parsed.get("Messages"):
                    self.clock.sleep(self._params["WaitTimeSeconds"])
            elif model.name == "SendMessage":
                self.struck.append(self._params["MessageBody"])
                if self.on_sent:
                    self.on_sent(self._params["MessageBody"])
            elif model.name == "DeleteMessage":
                self.struck.pop()
                self.deleted.append(self._params["ReceiptHandle"])
        self._moment()


@dataclass
class Queues:
    """The queues of one stack, and its redrive document's script."""

    environment: str
    sqs: Any
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        names = ("email-input", "email-input-dlq", "gmail-forwarder-dlq", "bouncer-dlq")
        self.input, *self.dlqs = (
            self.sqs.create_queue(QueueName=f"ses-{name}-{self.environment}")["QueueUrl"]
            for name in names
        )
        self.dlq = self.dlqs[1]
        project = Project(ROOT, {"Environment": self.environment, "Domains": ["example.com"]})
        self._content = project.properties("DlqRedriveDocument")["Content"]

    def park(self, count: int, error: str | None = "GmailTokenError", first: int = 0) -> list[str]:
        """Dead letters with their attributes; their bodies."""
        bodies = [f'{{"letter": {first + number}}}' for number in range(count)]
        for start in range(0, count, 10):
            entries = [
                {
                    "Id": str(number),
                    "MessageBody": body,
                    "MessageAttributes": attributes(error) if error else {},
                }
                for number, body in enumerate(bodies[start : start + 10])
            ]
            self.sqs.send_message_batch(QueueUrl=self.dlq, Entries=entries)
        return bodies

    def redrive(self, watch: Watch | None = None, **values: Any) -> dict[str, Any]:
        """Run the script as SSM would, with these parameters; what it returns."""
        parameters = {"DLQUrl": self.dlq, "SourceQueueUrl": self.input, **values}
        (watch or Watch(self.clock)).install()
        return run(
            self._content,
            given(self._content["parameters"], {name: [str(v)] for name, v in parameters.items()}),
            self.clock,
        )

    def show(self, handles: list[str]) -> None:
        """The time has passed for which these letters were not to be seen."""
        for handle in handles:
            self.sqs.change_message_visibility(
                QueueUrl=self.dlq, ReceiptHandle=handle, VisibilityTimeout=0
            )

    def drain(self, url: str) -> list[dict[str, Any]]:
        """Every message that can be seen, taken out."""
        found = []
        while messages := self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            found += messages
            for message in messages:
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return found

    def count(self, url: str) -> tuple[int, int]:
        """Messages that can be seen, and those in flight."""
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return (
            int(found["ApproximateNumberOfMessages"]),
            int(found["ApproximateNumberOfMessagesNotVisible"]),
        )


def attributes(error: str) -> dict[str, Any]:
    """As the workflow gives them to a dead letter."""
    values = {"MessageId": "o3vr", "Action": "forward-to-gmail", "Error": error}
    return {name: {"DataType": "String", "StringValue": values[name]} for name in ATTRIBUTES}


def script(content: Mapping[str, Any], clock: Any = None) -> Callable[[Any], Any]:
    """The handler of a document's script; with a clock it sleeps on that."""
    (step,) = content["mainSteps"]
    module: dict[str, Any] = {"__name__": "script"}
    exec(compile(step["inputs"]["Script"], "script", "exec"), module)
    if clock is not None:
        assert "time" in module, "the script has another clock"
        module["time"] = SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep)
    handler = module[step["inputs"]["Handler"]]
    return lambda payload: handler(payload, None)


def run(content: Mapping[str, Any], parameters: Mapping[str, Any], clock: Any = None) -> Any:
    """What the script returns for these parameters."""
    (step,) = content["mainSteps"]
    return script(content, clock)(substituted(step["inputs"]["InputPayload"], parameters))


def busiest_second(times: list[float]) -> int:
    """How many fall into one second at most, wherever it begins."""
    most, first = 0, 0
    for last, at in enumerate(times):
        while at - times[first] >= 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def counted(messages: list[dict[str, Any]]) -> Counter[str]:
    return Counter(message["Body"] for message in messages)
