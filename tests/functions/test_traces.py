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


def traced(handler: str, event: Any) -> list[dict[str, Any]]:
    """The subsegments that a call of a handler sends to the daemon."""
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
            "STATE_MACHINE_ARN": "none",
            "INPUT_DLQ_URL": "none",
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


def test_a_start_is_traced() -> None:
    # A message of SES's own set-up needs nothing of AWS.
    body = {"mail": {"messageId": "AMAZON_SES_SETUP_NOTIFICATION"}, "receipt": {}}
    (segment,) = traced("starter", [{"messageId": "m0", "body": json.dumps(body)}])
    assert segment["annotations"]["messageId"] == "AMAZON_SES_SETUP_NOTIFICATION"
