"""`make local` in one process, and a stranger's programs against it in others."""

import base64
import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from samcli.lib.providers.provider import Stack
from samcli.lib.providers.sam_function_provider import SamFunctionProvider
from samtranslator.yaml_helper import yaml_parse

from tests.runbooks.blocks import blocks
from tests.template.test_documentation import commands

ROOT = Path(__file__).parents[2]
ENDPOINTS = ROOT / ".local" / "endpoints.json"
ENVIRONMENT = ROOT / ".local" / "env.json"
SHELL = ROOT / ".local" / "shell"
SAMPLE = "o3vrnil0e2ic28trm7dfhrc2v0cnbeccl4nbp0g1"
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
    assert f". {SHELL}" in output
    for command in ("trace", "health", "token set --consent"):
        assert f"sesmail {command}" in output
    assert "unpublished metrics" not in output
    assert not ENDPOINTS.exists()
    assert not SHELL.exists()
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
    assert statuses["SUCCEEDED"] >= 200


def executions(cloud: dict[str, Any]) -> list[dict[str, Any]]:
    machine = (
        f"arn:aws:states:{cloud['region']}:123456789012:stateMachine:ses-mail-process-email-test"
    )
    listed = json.loads(
        aws(cloud, "stepfunctions", "list-executions", "--state-machine-arn", machine)
    )
    return listed["executions"]  # type: ignore[no-any-return]


def status(cloud: dict[str, Any]) -> list[str]:
    return [execution["status"] for execution in executions(cloud)]


def idle(cloud: dict[str, Any]) -> bool:
    statuses = status(cloud)
    return len(statuses) >= 200 and "RUNNING" not in statuses


# Each function's sample event → what its answer says. The sample email came in when the cloud
# started, so what it asks for is there already.
ANSWERS = {
    "starter": {"batchItemFailures": []},
    "fetcher": {"key": f"emails/{SAMPLE}", "received": 1},
    "router": {"deliveries": ANY},
    "gmail_forwarder": {"outcome": "delivered", "reason": "already-there"},
    "bouncer": {"outcome": "bounced", "reason": "already-there"},
    "sweeper": {"swept": []},
    "token_monitor": {"checked": ANY, "automation": ""},
}


def test_each_function_has_its_sample_event(cloud: dict[str, Any]) -> None:
    assert set(ANSWERS) == {path.stem for path in (ROOT / "functions").glob("*.py")}
    assert {logical_id(name) for name in ANSWERS} == json.loads(ENVIRONMENT.read_text()).keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_a_function_with_its_sample_event_and_nothing_but_env_json(
    cloud: dict[str, Any], name: str
) -> None:
    """As `sam local invoke` runs it, but for the container, whose names of host and layer are
    replaced by this machine's."""
    deadline = time.monotonic() + 60
    while SAMPLE not in succeeded(cloud) and time.monotonic() < deadline:
        time.sleep(0.2)
    variables = json.loads(ENVIRONMENT.read_text())[logical_id(name)]
    here = {"host.docker.internal": "127.0.0.1", "/opt/": f"{ENVIRONMENT.parent}/layer/"}
    for there, replacement in here.items():
        variables = {key: value.replace(there, replacement) for key, value in variables.items()}
    # What SAM adds (samcli/local/lambdafn/env_vars.py).
    variables |= {
        "AWS_SAM_LOCAL": "true",
        "AWS_ACCESS_KEY_ID": "defaultkey",
        "AWS_SECRET_ACCESS_KEY": "defaultsecret",
        "AWS_LAMBDA_FUNCTION_NAME": f"ses-mail-{name.replace('_', '-')}-test",
    }
    script = (
        "import importlib, json, sys, types\n"
        "context = types.SimpleNamespace(aws_request_id='sample', function_name=sys.argv[1],\n"
        "    get_remaining_time_in_millis=lambda: 300_000)\n"
        "handler = importlib.import_module(sys.argv[1]).handler\n"
        "print('ANSWER', json.dumps(handler(json.load(sys.stdin), context)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        cwd=ROOT / "functions",
        env=variables,
        stdin=(ROOT / "events" / f"{name}.json").open(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.rpartition("ANSWER ")[2])
    assert {key: answer[key] for key in ANSWERS[name]} == ANSWERS[name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of SAM
def test_sam_finds_the_functions_of_the_template(cloud: dict[str, Any]) -> None:
    """SAM passes on only variables that the template declares, and finds code and layers."""
    declared = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]
    environment = json.loads(ENVIRONMENT.read_text())
    stack = Stack(
        "",
        "",
        str(ENVIRONMENT.parent / "template.yaml"),
        {},
        json.loads((ENVIRONMENT.parent / "template.yaml").read_text()),
    )
    functions = {f.name: f for f in SamFunctionProvider([stack]).get_all()}
    assert functions.keys() == environment.keys()
    for name, function in functions.items():
        properties = declared[name]["Properties"]
        assert function.handler == properties["Handler"]
        assert function.environment["Variables"].keys() == environment[name].keys()
        own = set(properties["Environment"]["Variables"])
        assert own < environment[name].keys()
        assert Path(function.codeuri).resolve() == ROOT / "functions"
        folders = [Path(layer.codeuri).resolve() for layer in function.layers]
        wanted = ["BaseLayer", *(["GmailLayer"] if "Layers" in properties else [])]
        assert sorted(f.name for f in folders) == sorted([*wanted, "layer"])


def logical_id(name: str) -> str:
    return name.title().replace("_", "") + "Function"


def succeeded(cloud: dict[str, Any]) -> list[str]:
    return [e["name"] for e in executions(cloud) if e["status"] == "SUCCEEDED"]


@pytest.mark.parametrize(
    ("command", "shows"),
    [
        ("aws sqs list-queues", "/ses-email-input-test"),  # CLI v1 ignores AWS_ENDPOINT_URL here
        ("aws dynamodb list-tables", "ses-email-routing-test"),
        (f"sesmail trace {SAMPLE}", "anna@gmail.com"),
        ("sesmail token check", "valid"),
        ("sesmail health", "HEALTHY"),
        # As the runbook begins.
        ("export AWS_PROFILE=ses-mail && aws sqs list-queues", "/ses-email-input-test"),
        ("export AWS_PROFILE=ses-mail && sesmail routes list", "anna@example.com"),
        ("aws configure get region --profile ses-mail", "ap-southeast-2"),
    ],
)
def test_a_shell_that_read_its_file(cloud: dict[str, Any], command: str, shows: str) -> None:
    done = in_shell(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert shows in done.stdout
    assert "prod" not in done.stdout


def in_shell(command: str) -> "subprocess.CompletedProcess[str]":
    """Run it as somebody whose environment leads to AWS, and through a proxy, in every way."""
    nowhere = "http://127.0.0.1:9"
    return subprocess.run(
        ["bash", "-c", f". {SHELL} && {command}"],
        cwd=ROOT,
        env={
            "HOME": "/nonexistent",
            "PATH": os.environ["PATH"],
            "AWS_PROFILE": "prod",
            "AWS_DEFAULT_PROFILE": "prod",
            "AWS_ENDPOINT_URL_SQS": nowhere,
            "AWS_ENDPOINT_URL_DYNAMODB": nowhere,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
            "http_proxy": nowhere,
            "https_proxy": nowhere,
            "no_proxy": "intranet.example",
            # In the background, as a real one: it waits for the command that waits for it.
            "BROWSER": "curl --silent --output /dev/null --location %s &",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_token_that_died_and_is_renewed(cloud: dict[str, Any]) -> None:
    """local/README.md's blocks, as they stand there but for the port."""
    revoke, renew = (
        block.text.replace("http://127.0.0.1:4567", cloud["google"])
        for block in blocks(ROOT / "local" / "README.md")
        if "sesmail token" in block.text
    )
    anna = cloud["mailboxes"][0]
    dead = in_shell(revoke)
    assert dead.returncode == 1, dead.stderr
    assert re.search(r"gmail-token\t\tinvalid\tinvalid_grant", dead.stdout)
    before = set(messages(cloud, anna))
    with smtplib.SMTP(cloud["smtp"]["host"], cloud["smtp"]["port"]) as server:
        server.sendmail(
            "x@elsewhere.example", ["anna@example.com"], "Subject: Held up\r\n\r\nHi\r\n"
        )
    wait_for(lambda: "GmailTokenError" in in_shell("sesmail dlq list").stdout)
    held_up = in_shell("sesmail health")
    assert held_up.returncode == 1
    assert "ses-gmail-forwarder-dlq-test holds 1 dead letters" in held_up.stdout

    renewed = in_shell(renew)
    assert renewed.returncode == 0, renewed.stderr
    assert "invalid" not in renewed.stdout
    wait_for(lambda: len(messages(cloud, anna)) > len(before))
    (message,) = set(messages(cloud, anna)) - before
    assert b"Subject: Held up" in raw(cloud, anna, message)
    wait_for(lambda: in_shell("sesmail health").returncode == 0)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


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
