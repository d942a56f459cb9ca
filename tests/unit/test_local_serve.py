"""`make local`: what it writes, and that it leaves nothing behind."""

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENDPOINTS = ROOT / ".local" / "endpoints.json"


@pytest.fixture
def start():
    """Starts `make local`; whatever the test says of it, it does not outlive the test."""
    started = []

    def start_one(**environment: str) -> "subprocess.Popen[str]":
        started.append(_start(**environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def _start(**environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "local.serve"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["LOCAL_SMTP_PORT", "LOCAL_AWS_PORT", "LOCAL_GOOGLE_PORT"])
def test_a_taken_port(start, name):
    free = dict.fromkeys(("LOCAL_SMTP_PORT", "LOCAL_AWS_PORT", "LOCAL_GOOGLE_PORT"), "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(**{**free, name: str(port)})
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"Port {port}" in errors
    assert name in errors


def test_a_port_that_is_no_number(start):
    process = start(LOCAL_SMTP_PORT="smtp")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "LOCAL_SMTP_PORT=smtp: expected a number" in errors


def test_a_fault_that_there_is_not(start):
    process = start(LOCAL_FAULTS="throttled@s4")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "LOCAL_FAULTS: 'throttled@s4': no such site" in errors


@pytest.mark.slow
def test_it_serves_until_it_is_stopped(start):
    """By SIGTERM; by a terminal's Ctrl-C in tests/e2e/test_local.py."""
    fault = "slow-answer@gmail:Start"
    process = start(
        LOCAL_SMTP_PORT="0", LOCAL_AWS_PORT="0", LOCAL_GOOGLE_PORT="0", LOCAL_FAULTS=fault
    )
    assert process.stdout
    for line in process.stdout:
        if "All of it as JSON" in line:
            break
    endpoints = json.loads(ENDPOINTS.read_text())
    assert len(endpoints["mailboxes"]) >= 3
    with smtplib.SMTP(endpoints["smtp"]["host"], endpoints["smtp"]["port"]) as smtp:
        smtp.sendmail("you@example.org", ["anna@example.com"], "Subject: Hello\r\n\r\nHi!\r\n")
    with urllib.request.urlopen(endpoints["bounces"]) as answer:
        assert json.load(answer) == []
    struck = ROOT / ".local" / "faults.jsonl"
    deadline = time.monotonic() + 120
    while not struck.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    fired = json.loads(struck.read_text().splitlines()[0])
    assert (fired["kind"], fired["by"]) == ("slow answer", "ses-mail-gmail-forwarder-test")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not ENDPOINTS.exists()
    with socket.socket() as probe:
        assert probe.connect_ex((endpoints["smtp"]["host"], endpoints["smtp"]["port"])) != 0
