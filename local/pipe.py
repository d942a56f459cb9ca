"""The EventBridge Pipe: polls the input queue and hands batches to the starter."""

from __future__ import annotations

import json
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

# Real seconds; long enough for any invocation. A failed message is made visible again in its own
# time, see _poll.
VISIBILITY = 120


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
    ) -> None:
        self.name = name
        self._queue_url = queue_url
        self._queue_arn = queue_arn
        self._batch_size = batch_size
        self._visibility = math.ceil(visibility)
        self._invoke = invoke
        self._sqs = client("sqs")
        self._pipes = client("pipes")
        self._stop = threading.Event()
        self.busy = threading.Lock()  # held while a batch is being received or in flight
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, name="pipe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def pause(self) -> None:
        """Stop polling, as an operator would; returns when no batch is in flight any more."""
        self._pipes.stop_pipe(Name=self.name)
        with self.busy:
            pass

    def resume(self) -> None:
        self._pipes.start_pipe(Name=self.name)

    @property
    def running(self) -> bool:
        """Whether the operator wants it to run."""
        described = self._pipes.describe_pipe(Name=self.name)
        return bool(described["DesiredState"] == "RUNNING")

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            with self.busy:
                try:
                    pause = 0.0 if self.running and self._poll() else 0.05
                except Exception:
                    if self._stop.is_set():
                        return
                    self.failures.append(traceback.format_exc())
                    pause = 0.5

    def _poll(self) -> bool:
        """Whether there were messages."""
        # Short polls: a long one would keep the pipe from being paused or stopped.
        messages = self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=min(self._batch_size, 10),
            VisibilityTimeout=VISIBILITY,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages", [])
        if not messages:
            return False
        received = time.monotonic()
        payload, is_error = self._invoke([self._record(message) for message in messages])
        failed = failed_items(payload, is_error, {m["MessageId"] for m in messages})
        for message in messages:
            handle = {"QueueUrl": self._queue_url, "ReceiptHandle": message["ReceiptHandle"]}
            if message["MessageId"] in failed:
                self.failures.append(f"{message['MessageId']}: {payload}")
                left = self._visibility - (time.monotonic() - received)
                self._sqs.change_message_visibility(
                    **handle, VisibilityTimeout=max(0, math.ceil(left))
                )
            else:
                self._sqs.delete_message(**handle)
        return True

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
