"""Every trace of an email is annotated with its messageId, as the X-Ray daemon receives it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
# The handlers find nothing of AWS here; what they trace of the email comes before.
CALL = """
import importlib, json, sys, types
name, event = sys.argv[1:]
context = types.SimpleNamespace(aws_request_id="r", function_name=name)
try:
    importlib.import_module(name).handler(json.loads(event), context)
except KeyError as error:
    assert str(error).isupper(), error
"""


def traced(handler: str, event: Any, **variables: str) -> list[dict[str, Any]]:
    """The subsegments that a call of a handler sends to the daemon; without the variables that it
    needs it fails."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}/functions",
            "LAMBDA_TASK_ROOT": f"{ROOT}/functions",
            "_X_AMZN_TRACE_ID": TRACE,
            "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{daemon.getsockname()[1]}",
            "AWS_DEFAULT_REGION": "eu-north-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "local",
            "POWERTOOLS_SERVICE_NAME": handler,
            "POWERTOOLS_METRICS_NAMESPACE": "SESMail/test",
            **variables,
        }
        subprocess.run(
            [sys.executable, "-c", CALL, handler, json.dumps(event)],
            env=environment,
            check=True,
            capture_output=True,
        )
        daemon.settimeout(0.5)
        segments = []
        try:
            while True:
                _, _, document = daemon.recvfrom(65536)[0].partition(b"\n")
                segments.append(json.loads(document))
        except TimeoutError:
            return segments


@pytest.mark.parametrize("handler", ["fetcher", "router", "gmail_forwarder", "bouncer"])
def test_a_task_is_traced(handler: str) -> None:
    event = json.loads((ROOT / f"events/{handler}.json").read_text())
    (segment,) = traced(handler, event)
    assert segment["annotations"]["messageId"] == event["messageId"]
    assert segment["trace_id"] in TRACE


def annotated(segment: dict[str, Any]) -> list[str]:
    """The messageIds of a segment and of all that it holds."""
    own = segment.get("annotations", {}).get("messageId")
    inner = [i for s in segment.get("subsegments", []) for i in annotated(s)]
    return [own, *inner] if own else inner


def test_every_message_of_a_batch_is_traced() -> None:
    """Those of unknown emails fail here, where no AWS answers; they are traced all the same."""
    email = json.loads((ROOT / "events/ses-notification.json").read_text())
    records = []
    for name in ("first0", "second0", "AMAZON_SES_SETUP_NOTIFICATION"):
        email["mail"]["messageId"] = name
        records.append({"messageId": f"m-{name}", "body": json.dumps(email)})
    found = [
        i
        for segment in traced("starter", records, STATE_MACHINE_ARN="none", INPUT_DLQ_URL="none")
        for i in annotated(segment)
    ]
    assert found == ["first0", "second0", "AMAZON_SES_SETUP_NOTIFICATION"]


@pytest.mark.parametrize(
    "handler",
    ["starter", "fetcher", "router", "gmail_forwarder", "bouncer", "sweeper", "token_monitor"],
)
def test_no_error_is_traced_in_full(handler: str) -> None:
    """Its text and what it was raised from may name anything."""
    name = "ses-notification" if handler == "starter" else handler
    (segment,) = traced(handler, json.loads((ROOT / f"events/{name}.json").read_text()))
    assert segment["fault"] is True
    assert "metadata" not in segment
