"""`make local` in one process, and a stranger's programs against it in others."""

import base64
import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.template.test_documentation import commands

ROOT = Path(__file__).parents[2]
ENDPOINTS = ROOT / ".local" / "endpoints.json"
pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start(ports: list[int]) -> "subprocess.Popen[str]":
    names = ("LOCAL_SMTP_PORT", "LOCAL_AWS_PORT", "LOCAL_GOOGLE_PORT")
    return subprocess.Popen(
        ["make", "--silent", "local"],
        cwd=ROOT,
        env={**os.environ, **dict(zip(names, map(str, ports), strict=True))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> set[int]:
    """Process ids of all children of children."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found, generation = set(), {pid}
    while generation:
        generation = {child for child, parent in parents if parent in generation} - found
        found |= generation
    return found


def running(pids: set[int]) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True)
    alive = {int(line.split()[0]) for line in listed.stdout.splitlines() if " Z" not in line}
    return pids & alive


@pytest.fixture(scope="module")
def cloud() -> Iterator[dict[str, Any]]:
    ENDPOINTS.unlink(missing_ok=True)
    process = start(free_ports(3))
    deadline = time.monotonic() + 120
    while not ENDPOINTS.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ENDPOINTS.exists(), process.communicate(timeout=5)[0]
    endpoints: dict[str, Any] = json.loads(ENDPOINTS.read_text())
    yield endpoints
    children = descendants(process.pid)
    assert len(children) > 5, "make, the cloud and a worker per function"
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    output, _ = process.communicate(timeout=60)
    assert "2525" not in output, "configured ports are the printed ones"
    assert (
        f"127.0.0.1:{endpoints['smtp']['port']}" in output
        or str(endpoints["smtp"]["port"]) in output
    )
    assert "AWS_ENDPOINT_URL" in output
    assert not ENDPOINTS.exists()
    deadline = time.monotonic() + 10
    while running(children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(children) == set()


def get(url: str, token: str = "") -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def messages(cloud: dict[str, Any], mailbox: str) -> list[str]:
    """Ids of all messages of a mailbox, page by page."""
    url = f"{cloud['google']}/gmail/v1/users/{mailbox}/messages?maxResults=100"
    ids: list[str] = []
    page: str | None = ""
    while page is not None:
        answer = get(url + (f"&pageToken={page}" if page else ""), cloud["google_token"])
        ids += [message["id"] for message in answer.get("messages", [])]
        page = answer.get("nextPageToken")
    return ids


def raw(cloud: dict[str, Any], mailbox: str, message: str) -> bytes:
    url = f"{cloud['google']}/gmail/v1/users/{mailbox}/messages/{message}?format=raw"
    return base64.urlsafe_b64decode(get(url, cloud["google_token"])["raw"])


def aws_environment(cloud: dict[str, Any]) -> dict[str, str]:
    return {
        **os.environ,
        "AWS_ENDPOINT_URL": cloud["aws"],
        "AWS_DEFAULT_REGION": cloud["region"],
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }


def aws(cloud: dict[str, Any], *arguments: str) -> str:
    done = subprocess.run(
        [ROOT / ".venv/bin/aws", *arguments],
        env=aws_environment(cloud),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def put_rule(cloud: dict[str, Any], pattern: str, action: str, target: str) -> None:
    """The seed runbook's command, word by word but for the values."""
    item = {
        "PK": {"S": f"ROUTE#{pattern}"},
        "SK": {"S": "RULE#v1"},
        "entity_type": {"S": "ROUTE"},
        "recipient": {"S": pattern},
        "action": {"S": action},
        "target": {"S": target},
        "enabled": {"BOOL": True},
        "created_at": {"S": "2026-11-24T09:00:00Z"},
        "updated_at": {"S": "2026-11-24T09:00:00Z"},
        "description": {"S": "Put by a test"},
    }
    aws(
        cloud,
        *("dynamodb", "put-item", "--table-name", "ses-email-routing-test"),
        *("--item", json.dumps(item)),
    )


def test_two_hundred_emails_over_ten_connections(cloud: dict[str, Any]) -> None:
    first, second = cloud["mailboxes"][:2]
    put_rule(cloud, "inbox@load.example", "forward-to-gmail", first)
    put_rule(cloud, "*@wild.example", "forward-to-gmail", second)
    put_rule(cloud, "keep@load.example", "store", "")
    put_rule(cloud, "*@gone.example", "bounce", "")
    kinds = ("inbox@load.example", "any{}@wild.example", "keep@load.example", "no{}@gone.example")

    def connection(number: int) -> None:
        with smtplib.SMTP(cloud["smtp"]["host"], cloud["smtp"]["port"]) as server:
            for index in range(number * 20, number * 20 + 20):
                recipient = kinds[index % 4].format(index)
                text = f"Subject: Load {index}\r\nMessage-ID: <{index}@load>\r\n\r\nHi\r\n"
                server.sendmail("load@elsewhere.example", [recipient], text)

    before = {mailbox: set(messages(cloud, mailbox)) for mailbox in (first, second)}
    with ThreadPoolExecutor(10) as connections:
        list(connections.map(connection, range(10)))

    def arrived() -> dict[str, list[str]]:
        return {m: [i for i in messages(cloud, m) if i not in before[m]] for m in before}

    def bounced() -> list[str]:
        return [r for b in get(cloud["bounces"]) for r in b["recipients"] if "@gone." in r]

    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if sum(map(len, arrived().values())) >= 100 and len(bounced()) >= 50 and idle(cloud):
            break
        time.sleep(0.5)
    for mailbox, kind in ((first, 0), (second, 1)):
        numbers = Counter(
            int(re.search(rb"Load (\d+)", raw(cloud, mailbox, message))[1])  # type: ignore[index]
            for message in arrived()[mailbox]
        )
        assert numbers == Counter(range(kind, 200, 4))
    assert Counter(bounced()) == Counter(f"no{index}@gone.example" for index in range(3, 200, 4))
    statuses = Counter(status(cloud))
    assert statuses["FAILED"] == statuses["RUNNING"] == 0
    assert statuses["SUCCEEDED"] == 200


def status(cloud: dict[str, Any]) -> list[str]:
    machine = (
        f"arn:aws:states:{cloud['region']}:123456789012:stateMachine:ses-mail-process-email-test"
    )
    listed = json.loads(
        aws(cloud, "stepfunctions", "list-executions", "--state-machine-arn", machine)
    )
    return [execution["status"] for execution in listed["executions"]]


def idle(cloud: dict[str, Any]) -> bool:
    statuses = status(cloud)
    return len(statuses) >= 200 and "RUNNING" not in statuses


def test_a_second_one_leaves_the_first_alone(cloud: dict[str, Any]) -> None:
    certificate = ENDPOINTS.parent / "google" / "google-ca.pem"
    before = certificate.read_bytes(), ENDPOINTS.read_bytes()
    process = start(free_ports(3))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"runs here already: see {ENDPOINTS}" in output
    assert (certificate.read_bytes(), ENDPOINTS.read_bytes()) == before


def test_the_setup_commands_work(cloud: dict[str, Any], tmp_path: Path) -> None:
    """docs/setup.md's commands, as they stand there, against `make local`."""
    (tmp_path / "token.json").write_text(json.dumps({"refresh_token": "a", "client_id": "b"}))
    run = [c for c in commands("docs/setup.md") if c.startswith(("aws ssm put", "aws dynamodb"))]
    assert len(run) == 3
    binaries = ROOT / ".venv" / "bin"
    for command in run:
        environment = {**aws_environment(cloud), "PATH": f"{binaries}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    names = ("dynamodb", "get-item", "--table-name", "ses-email-routing-test")
    key = json.dumps({"PK": {"S": "ROUTE#support@example.com"}, "SK": {"S": "RULE#v1"}})
    assert "you@gmail.com" in aws(cloud, *names, "--key", key)
