"""Where moto is kinder than AWS and mail would notice: SQS, SSM names, and threads."""

from __future__ import annotations

import copy
import functools
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import moto.backends
import moto.dynamodb.models as dynamodb_models
from moto.core.routing import get_router_class, get_service_router
from moto.core.utils import get_service_model
from moto.dynamodb.models import DynamoDBBackend, Table
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.sqs.exceptions import SQSException
from moto.sqs.models import Queue, SQSBackend
from moto.ssm.exceptions import ValidationException
from moto.ssm.models import SimpleSystemManagerBackend
from moto.stepfunctions.parser.models import StepFunctionsParserBackend

from local.patches import Patches

MAXIMUM_MESSAGE = 1024 * 1024
# #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF: all that SQS takes.
REFUSED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Reads too: moto adds keys to its tables when it looks for one.
DYNAMODB = (
    *("get_item", "query", "scan"),
    *("put_item", "update_item", "delete_item", "transact_write_items"),
)
# Services that get their first requests from many threads at once.
_BUSY = ("cloudwatch", "dynamodb", "lambda", "logs", "s3", "sqs", "ssm", "stepfunctions")
PARAMETER_NAME = re.compile(r"[a-zA-Z0-9_.\-/]+")


def install(patches: Patches) -> None:
    """Make moto's backends as strict as AWS, and atomic under concurrent requests."""

    def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        patches.replace(owner, name, wrapper(getattr(owner, name)))

    wrap(SQSBackend, "send_message", _checked_message)
    wrap(SimpleSystemManagerBackend, "put_parameter", _checked_name)
    # moto keeps a queue in a list that a deletion copies: a message sent meanwhile would be lost.
    wrap(Queue, "add_message", _locked_queue)
    wrap(Queue, "delete_message", _locked_queue)
    wrap(SQSBackend, "receive_message", _locked_receive)
    wrap(DynamoDBBackend, "transact_write_items", functools.partial(_snapshotting, patches))
    # moto counts a queue's messages anew for each message that it looks at.
    patches.replace(SQSBackend, "is_message_valid_based_on_retention_period", _is_retained)
    # Conditions and names are checked first and applied later.
    writes = threading.RLock()
    for name in DYNAMODB:
        wrap(DynamoDBBackend, name, functools.partial(_serialized, lock=writes))
    # moto lists its own folder for every request, under a lock.
    modules = frozenset(moto.backends.list_of_moto_modules())
    patches.replace(moto.backends, "list_of_moto_modules", lambda: modules)
    wrap(DomainDispatcherApplication, "get_backend_for_host", functools.cache)
    for service in _BUSY:
        _prepare(service)
    starts = functools.partial(_serialized, lock=threading.RLock())
    wrap(StepFunctionsParserBackend, "start_execution", starts)


def _snapshotting(patches: Patches, original: Any) -> Any:
    """moto copies the whole table for every item of a transaction, in case it has to be undone; the
    records that the transaction names are enough."""
    touched: set[str] = set()  # hash keys; the lock of all writes is held

    def snapshot(value: Any, *memo: Any) -> Any:
        if not isinstance(value, Table):
            return copy.deepcopy(value, *memo)
        table = copy.copy(value)
        table.items = defaultdict(
            dict,
            {k: copy.deepcopy(v) if k.value in touched else v for k, v in value.items.items()},
        )
        return table

    @functools.wraps(original)
    def transact_write_items(self: Any, transact_items: Any) -> Any:
        operations = [operation for item in transact_items for operation in item.values()]
        keys = [operation.get("Key") or operation["Item"] for operation in operations]
        touched.clear()
        touched.update(text for key in keys for value in key.values() for text in value.values())
        return original(self, transact_items)

    patches.replace(dynamodb_models, "copy", SimpleNamespace(deepcopy=snapshot))
    return transact_write_items


def check_message(body: str, attributes: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why SQS refuses the message, or None."""
    if not body:
        return "The request must contain the parameter MessageBody."
    if REFUSED.search(body):
        return "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | ..."
    size = len(body.encode())
    for name, attribute in attributes.items():
        value = attribute.get("StringValue", attribute.get("BinaryValue"))
        if not value:
            return f"Message (user) attribute '{name}' must contain a non-empty value."
        if isinstance(value, str) and REFUSED.search(value):
            return f"Message (user) attribute '{name}' value contains invalid characters."
        size += len(name) + len(attribute["DataType"]) + len(value)
    if size > MAXIMUM_MESSAGE:
        return f"One or more parameters are invalid. Reason: more than {MAXIMUM_MESSAGE} bytes."
    return None


def _checked_message(original: Any) -> Any:
    @functools.wraps(original)
    def send_message(
        self: Any,
        queue_name: str,
        message_body: str,
        message_attributes: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        refusal = check_message(message_body, message_attributes or {})
        if refusal:
            raise SQSException("InvalidParameterValue", refusal)
        return original(self, queue_name, message_body, message_attributes, *args, **kwargs)

    return send_message


def _checked_name(original: Any) -> Any:
    @functools.wraps(original)
    def put_parameter(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if not PARAMETER_NAME.fullmatch(name):
            raise ValidationException(
                f"Parameter name must only contain the characters a-zA-Z0-9_.-/ (here: {name})",
            )
        return original(self, name, *args, **kwargs)

    return put_parameter


def _locked_queue(original: Any) -> Any:
    @functools.wraps(original)
    def locked(self: Any, *args: Any) -> Any:
        with self._messages_lock:
            return original(self, *args)

    return locked


def _locked_receive(original: Any) -> Any:
    @functools.wraps(original)
    def receive_message(self: Any, queue_name: str, *args: Any, **kwargs: Any) -> Any:
        # moto waits for messages on a condition of this lock, which lets others in meanwhile.
        with self.get_queue(queue_name)._messages_lock:
            return original(self, queue_name, *args, **kwargs)

    return receive_message


def _is_retained(backend: Any, queue_name: str, message: Any) -> bool:
    kept: int = backend.get_queue(queue_name).message_retention_period
    return bool(message.sent_timestamp / 1000 + kept > time.time())


def _prepare(service: str) -> None:
    """What moto does at a service's first request, and of a hundred first ones for each; its cache
    of operations even answers some of them with an object of botocore's."""
    model = get_service_model(service)
    for name in model.operation_names:
        model.operation_model(name)
    if get_router_class(service, protocol := model.metadata["protocol"]):
        get_service_router(service)._get_router(protocol)


def _serialized(original: Any, lock: threading.RLock) -> Any:
    @functools.wraps(original)
    def serialized(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            return original(self, *args, **kwargs)

    return serialized
