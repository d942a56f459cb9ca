"""The EventBridge Pipe: polls the input queue and hands batches to the starter."""

from __future__ import annotations

import json
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import moto.pipes.models as moto_pipes
from moto.sqs.models import sqs_backends

from local.faults import DUPLICATE, ERROR, REORDER, RESET_AFTER, Faults, message_id_in
from local.iam import ACCOUNT, REGION
from local.patches import Patches

# Real seconds; long enough for any invocation. A failed message is made visible again in its own
# time, see _poll.
VISIBILITY = 120
# Batches in flight at once, at most.
BATCHES = 4


class Pipe:
    """One poller, as many messages per batch as the template's pipe says.

    `invoke(event)` returns (payload as JSON, whether it is an error). The pipe runs while moto says
    that it is RUNNING, so `aws pipes stop-pipe` works here too.
    """

    def __init__(
        self,
        name: str,
        queue_url: str,
        queue_arn: str,
        batch_size: int,
        visibility: float,  # real seconds until a failed message comes back
        invoke: Callable[[list[dict[str, Any]]], tuple[str, bool]],
        client: Callable[[str], Any],
        faults: Faults,
    ) -> None:
        self._faults = faults
        self.name = name
        self._queue_url = queue_url
        self._queue_arn = queue_arn
        self._batch_size = batch_size
        self._visibility = math.ceil(visibility)
        self._invoke = invoke
        self.queue = sqs_backends[ACCOUNT][REGION].get_queue(queue_arn.rsplit(":", 1)[-1])
        self._sqs = client("sqs")
        self._pipes = client("pipes")
        self._stop = threading.Event()
        self._slots = threading.Semaphore(BATCHES)
        self._batches = ThreadPoolExecutor(BATCHES, thread_name_prefix="pipe-batch")
        self.failures: list[str] = []
        self.executions: list[str] = []  # of each batch, the metric that counts its failure, or ""
        self._thread = threading.Thread(target=self._run, name="pipe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._batches.shutdown()

    def pause(self) -> None:
        """Stop polling, as an operator would; returns when no batch is in flight any more."""
        self._pipes.stop_pipe(Name=self.name)
        for _ in range(BATCHES):
            self._slots.acquire()
        self._slots.release(BATCHES)

    def resume(self) -> None:
        self._pipes.start_pipe(Name=self.name)

    @property
    def running(self) -> bool:
        """Whether the operator wants it to run."""
        # moto's own records, here and below: asked by HTTP fifty times a second they would take
        # more of this machine than the emails.
        return bool(
            moto_pipes.pipes_backends[ACCOUNT][REGION].pipes[self.name].desired_state == "RUNNING"
        )

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            self._slots.acquire()
            messages: list[dict[str, Any]] = []
            try:
                messages = self._receive() if self.running and self.queue.messages else []
                pause = 0.0 if messages else 0.02
            except Exception:
                self._failed()
                pause = 0.5
            if messages:
                # The slot is the batch's from here on, so that a pause waits for it.
                self._batches.submit(self._handle, messages)
            else:
                self._slots.release()

    def _failed(self) -> None:
        if not self._stop.is_set():
            self.failures.append(traceback.format_exc())

    def _receive(self) -> list[dict[str, Any]]:
        # Short polls: a long one would keep the pipe from being paused or stopped.
        received: list[dict[str, Any]] = self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=min(self._batch_size, 10),
            VisibilityTimeout=VISIBILITY,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages", [])
        return received

    def _handle(self, messages: list[dict[str, Any]]) -> None:
        try:
            self._deliver(messages)
        except Exception:
            self._failed()
        finally:
            self._slots.release()

    def _deliver(self, messages: list[dict[str, Any]]) -> None:
        received = time.monotonic()
        messages = self._reordered(messages)
        payload, is_error = self._suffering([self._record(message) for message in messages])
        failed = failed_items(payload, is_error, {m["MessageId"] for m in messages})
        partially = "ExecutionPartiallyFailed" if failed else ""
        self.executions.append("ExecutionFailed" if is_error else partially)
        for message in messages:
            handle = {"QueueUrl": self._queue_url, "ReceiptHandle": message["ReceiptHandle"]}
            again = message["MessageId"] in failed
            if again:
                self.failures.append(f"{message['MessageId']}: {payload}")
            if again or self._struck("sqs:Receive", message) == DUPLICATE:
                left = self._visibility - (time.monotonic() - received)
                self._sqs.change_message_visibility(
                    **handle, VisibilityTimeout=max(0, math.ceil(left))
                )
            else:
                self._sqs.delete_message(**handle)

    def _struck(self, site: str, message: Mapping[str, Any]) -> str | None:
        return self._faults.strike(site, "pipe", message_id_in(message["Body"]))

    def _reordered(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Standard queues keep no order: some messages go behind the others."""
        late = [m for m in messages if self._struck("sqs:Order", m) == REORDER]
        return [m for m in messages if m not in late] + late

    def _suffering(self, event: list[dict[str, Any]]) -> tuple[str, bool]:
        kind = self._faults.strike("lambda:Starter", "pipe", message_id_in(event[0]["body"]))
        if kind == ERROR:
            return '{"errorType": "Lambda.ServiceException"}', True
        answer = self._invoke(event)
        return (
            ('{"errorType": "Lambda.SdkClientException"}', True) if kind == RESET_AFTER else answer
        )

    def _record(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """An SQS message as a Pipe hands it over."""
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message.get("Attributes", {}),
            "messageAttributes": {
                name: {
                    "stringValue": value.get("StringValue"),
                    "stringListValues": [],
                    "binaryListValues": [],
                    "dataType": value["DataType"],
                }
                for name, value in message.get("MessageAttributes", {}).items()
            },
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self._queue_arn,
            "awsRegion": self._queue_arn.split(":")[3],
        }


def install_states(patches: Patches) -> None:
    """Let a stopped pipe be STOPPED: moto's goes on to STARTING and RUNNING when looked at."""
    patches.replace(moto_pipes.Pipe, "current_state", property(lambda pipe: pipe.desired_state))


def failed_items(payload: str, is_error: bool, message_ids: set[str]) -> set[str]:
    """Messages of a batch that the target did not accept; a malformed answer means all of them."""
    if is_error:
        return message_ids
    answer = json.loads(payload)
    if not answer:
        return set()
    try:
        failed = {item["itemIdentifier"] for item in answer.get("batchItemFailures") or []}
    except (AttributeError, KeyError, TypeError):
        return message_ids
    return failed if failed <= message_ids else message_ids
