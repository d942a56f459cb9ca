"""Sending emails into the embedded cloud, and reading what became of them."""

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import yaml

from cli.history import failure_of, located
from local.cloud import Cloud

DLQS = ("InputDlq", "GmailForwarderDlq", "BouncerDlq")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Step:
    """A transition of the state machine: from a state to the next, by its Catch or not."""

    state: str
    next: str
    caught: bool = False


@dataclass(frozen=True)
class Run:
    """One execution as its history tells it.

    entered: state names in order; attempts: tasks scheduled per state; errors: (state, error) of
    each failed attempt; outcomes: what the Map returned.
    """

    name: str
    arn: str
    status: str
    error: str
    input: dict[str, Any]
    entered: list[str] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[str, str]] = field(default_factory=list)
    steps: set[Step] = field(default_factory=set)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)

    def ended(self, outcome: str) -> set[str]:
        """Recipients of the deliveries that ended so."""
        return {r for o in self.outcomes if o["outcome"] == outcome for r in o["recipients"]}


@dataclass(frozen=True)
class Letter:
    """A message taken out of a dead-letter queue."""

    queue: str
    text: str
    attributes: dict[str, str]

    @property
    def body(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed

    @property
    def failure(self) -> dict[str, Any]:
        failure: dict[str, Any] = self.body["failure"]
        return failure


def read(execution: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> Run:
    """From DescribeExecution and GetExecutionHistory."""
    run = Run(
        execution["name"],
        execution["executionArn"],
        execution["status"],
        execution.get("error", ""),
        execution["input"],
    )
    for event, where in located(history):
        if "stateEnteredEventDetails" in event:
            run.entered.append(where.state)
            if where.left:
                run.steps.add(Step(where.left, where.state, where.caught))
        elif exited := event.get("stateExitedEventDetails"):
            if exited["name"] == "For each delivery":
                run.outcomes.extend(json.loads(exited["output"]).get("outcomes", []))
            elif exited["name"] == "Look up routes":
                run.deliveries.extend(json.loads(exited["output"]).get("deliveries", []))
        elif event["type"] == "TaskScheduled":
            run.attempts[where.state] += 1
        elif (failed := failure_of(event)) is not None:
            run.errors.append((where.state, failed["error"]))
    return run


def steps_of(definition: Mapping[str, Any]) -> set[Step]:
    """Every transition that a state machine's definition declares, inside its Maps too."""
    steps: set[Step] = set()
    for name, state in definition["States"].items():
        if "Next" in state:
            steps.add(Step(name, state["Next"]))
        if "Default" in state:
            steps.add(Step(name, state["Default"]))
        steps |= {Step(name, choice["Next"]) for choice in state.get("Choices", [])}
        steps |= {Step(name, catch["Next"], True) for catch in state.get("Catch", [])}
        if "ItemProcessor" in state:
            steps |= steps_of(state["ItemProcessor"])
    return steps


def states_of(definition: Mapping[str, Any]) -> set[str]:
    """Every state's name, those inside Maps too."""
    inner = (s["ItemProcessor"] for s in definition["States"].values() if "ItemProcessor" in s)
    return set(definition["States"]).union(*map(states_of, inner))


def definition(cloud_root: Any) -> dict[str, Any]:
    """The state machine's file."""
    text = (cloud_root / "statemachines" / "process_email.asl.yaml").read_text()
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def email(received: int = 0, headers: str = "") -> bytes:
    """A small email with that many Received lines."""
    return (
        "Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n" * received
        + f"From: Zoë <zoe@elsewhere.example>\r\nSubject: {next(_numbers)}\r\n"
        + f"{headers}\r\nHello\r\n"
    ).encode()


class Post:
    """A cloud with shorthands; every mailbox, address and sender it gives out is new."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    def mailbox(self, credentials: bool = True) -> str:
        """A new mailbox, with credentials in its own parameter."""
        address = f"mailbox{next(_numbers)}@gmail.example"
        if credentials:
            self.cloud.add_mailbox(address)
        return address

    def address(self, action: str, target: str | Sequence[str] = "") -> str:
        """A new recipient with a rule of its own."""
        address = f"r{next(_numbers)}@example.com"
        self.cloud.put_rule(address, action, target)
        return address

    def forwarded(self) -> tuple[str, str]:
        """A new recipient and the mailbox that its rule forwards to."""
        mailbox = self.mailbox()
        return self.address("forward-to-gmail", mailbox), mailbox

    def sender(self) -> str:
        """An envelope sender that got no bounce yet."""
        return f"zoe{next(_numbers)}@elsewhere.example"

    def send(
        self,
        *recipients: str,
        raw: bytes | None = None,
        sender: str | None = None,
        **options: Any,  # as Cloud.send takes them
    ) -> str:
        """Send an email; its messageId."""
        return self.cloud.send(
            email() if raw is None else raw,
            self.sender() if sender is None else sender,
            recipients,
            **options,
        )

    def store(self, *recipients: str, **options: Any) -> dict[str, Any]:
        """Let SES take an email in but lose its notification, which is returned instead."""
        self.cloud.pipe.pause()
        message_id = self.send(*recipients, **options)
        (_notification,) = self.take("InputQueue")
        self.cloud.pipe.resume()
        return self.cloud.notification(message_id)

    def start(self, name: str, execution_input: Mapping[str, Any]) -> None:
        """Start the state machine itself, past queue, pipe and starter."""
        self.cloud.client("stepfunctions").start_execution(
            stateMachineArn=self.cloud.resource("ProcessEmailStateMachine"),
            name=name,
            input=json.dumps(execution_input),
        )

    def queue(self, body: str | Mapping[str, Any]) -> None:
        """Put a message into the input queue, as an operator might."""
        self.cloud.client("sqs").send_message(
            QueueUrl=self.cloud.resource("InputQueue"),
            MessageBody=body if isinstance(body, str) else json.dumps(body),
        )

    def read(self, execution: Mapping[str, Any]) -> Run:
        """The execution that DescribeExecution describes."""
        return read(execution, self.cloud.history(execution["executionArn"]))

    def runs(self, message_id: str) -> list[Run]:
        """All executions of an email, oldest first."""
        return [self.read(execution) for execution in self.cloud.executions(message_id)]

    def run(self, message_id: str) -> Run:
        """The one execution of an email."""
        (run,) = self.runs(message_id)
        return run

    def delivered(self, message_id: str) -> Run:
        """Wait for the one execution of an email, which succeeds."""
        self.cloud.wait_idle()
        run = self.run(message_id)
        assert run.status == "SUCCEEDED", run
        return run

    def dead_lettered(self, message_id: str) -> Run:
        """Wait for the one execution of an email, which fails with everything in queues and the
        mark that says so."""
        self.cloud.wait_idle()
        run = self.run(message_id)
        assert (run.status, run.error) == ("FAILED", "DeadLettered"), run
        assert run.entered[-2:] == ["Record dead letters", "Dead-lettered"]
        assert self.is_marked(run)
        return run

    def parked(self) -> tuple[str, str, str]:
        """Recipient, mailbox and messageId of an email that is parked because Google took the
        mailbox's token back."""
        recipient, mailbox = self.forwarded()
        self.cloud.google.revoke(mailbox)
        message_id = self.send(recipient)
        self.dead_lettered(message_id)
        return recipient, mailbox, message_id

    def copies(self, mailbox: str) -> int:
        """How many emails lie in the mailbox."""
        return len(self.cloud.google.messages(mailbox))

    def take(self, *queues: str) -> list[Letter]:
        """Take every message out of these queues, by default the dead-letter queues."""
        sqs = self.cloud.client("sqs")
        letters = []
        for queue in queues or DLQS:
            url = self.cloud.resource(queue)
            while received := sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
            ).get("Messages"):
                for message in received:
                    attributes = message.get("MessageAttributes", {})
                    letters.append(
                        Letter(
                            queue,
                            message["Body"],
                            {name: value["StringValue"] for name, value in attributes.items()},
                        )
                    )
                    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return letters

    def redrive(self, *letters: Letter) -> None:
        """Send letters back to the input queue as they are, and wait for what they cause."""
        for letter in letters:
            self.queue(letter.text)
        self.cloud.wait_idle()

    def kill(self, function: str) -> None:
        """End the function's processes, as Lambda does when one takes too much memory."""
        for process in self.cloud.runtime.processes(f"ses-mail-{function}-test"):
            os.kill(process, signal.SIGKILL)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that happens outside of this process."""
        deadline = time.monotonic() + 300
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def is_marked(self, run: Run) -> bool:
        """Whether `Record dead letters` wrote its mark for the execution."""
        answer = self.cloud.client("dynamodb").get_item(
            TableName=self.cloud.resource("DeliveriesTable"),
            Key={
                "PK": {"S": f"EMAIL#{run.input['mail']['messageId']}"},
                "SK": {"S": f"PARKED#{run.name}"},
            },
        )
        return "Item" in answer


def check_letter(
    letter: Letter,
    run: Run,
    error: str,
    *,
    action: str,
    recipients: Sequence[str],
    target: str = "",
    rule: str = "",
    cause: str = "",
    redrive: Mapping[str, Any] | None = None,
) -> None:
    """Everything that a dead letter of the state machine promises; `cause` is part of the text,
    `redrive` what it holds besides attempt and recipients."""
    body, failure = letter.body, letter.failure
    old = run.input.get("redrive", {})
    assert set(body) == {"mail", "receipt", "redrive", "failure"}
    assert body["mail"] == run.input["mail"]
    assert body["receipt"] == run.input["receipt"]
    assert body["redrive"] == {
        **(redrive or {}),
        "attempt": old.get("attempt", 0) + 1,
        "recipients": list(recipients),
    }
    at = datetime.fromisoformat(failure["at"])
    assert at.utcoffset() == timedelta(0)
    assert cause in failure["cause"]
    assert len(failure["cause"]) <= 1000
    assert failure == {
        "action": action,
        "target": target,
        "matchedRule": rule,
        "recipients": list(recipients),
        "error": error,
        "cause": failure["cause"],
        "executionArn": run.arn,
        "at": failure["at"],
    }
    assert letter.attributes == {
        "MessageId": run.input["mail"]["messageId"],
        "Action": action,
        "Error": error,
    }
