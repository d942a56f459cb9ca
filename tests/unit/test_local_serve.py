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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOCAL_SMTP_PORT", "smtp", "expected a whole number from 0 to 65535"),
        ("LOCAL_AWS_PORT", "65536", "expected a whole number from 0 to 65535"),
        ("LOCAL_GOOGLE_PORT", "-1", "expected a whole number from 0 to 65535"),
        ("LOCAL_GOOGLE_PORT", "25.5", "expected a whole number from 0 to 65535"),
        ("LOCAL_GOOGLE_PORT", "2525", "LOCAL_SMTP_PORT has this port already"),
        ("LOCAL_TIME_FACTOR", "0", "expected a number from 0.001 to 1"),
        ("LOCAL_TIME_FACTOR", "-0.5", "expected a number from 0.001 to 1"),
        ("LOCAL_TIME_FACTOR", "nan", "expected a number from 0.001 to 1"),
        ("LOCAL_TIME_FACTOR", "fast", "expected a number from 0.001 to 1"),
        ("LOCAL_HOST", "192.0.2.1", "expected an IPv4 address of this machine"),
        ("LOCAL_HOST", "no.such.host.invalid", "expected an IPv4 address of this machine"),
        ("LOCAL_HOST", "::1", "expected an IPv4 address of this machine"),
        ("LOCAL_HOST", "a..b", "expected an IPv4 address of this machine"),
        ("LOCAL_HOST", "x" * 64, "expected an IPv4 address of this machine"),
    ],
)
def test_odd_values_are_one_sentence(start, name, value, said):
    process = start(**{name: value})
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, "")
    assert errors == f"{name}={value}: {said}\n"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("throttled@s4", "'throttled@s4': no such site; known are s3, "),
        ("throttled", "'throttled': no such site; known are s3, "),
        ("lost@s3", "'lost@s3': the kinds at s3 are throttled, "),
        ("throttled@s3=often", "'throttled@s3=often': a rate is a number between 0 and 1"),
        ("throttled@s3=2", "'throttled@s3=2': a rate is a number between 0 and 1"),
        ("throttled@s3=nan", "'throttled@s3=nan': a rate is a number between 0 and 1"),
    ],
)
def test_odd_faults_are_one_sentence(start, value, said):
    process = start(LOCAL_FAULTS=value)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, "")
    assert errors.startswith(f"LOCAL_FAULTS: {said}")
    assert errors.count("\n") == 1


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
