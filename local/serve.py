"""`make local`: the embedded cloud, kept running until Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from local import faults

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / ".local"
ENDPOINTS = DIRECTORY / "endpoints.json"
SHELL = DIRECTORY / "shell"
CONFIG = DIRECTORY / "aws-config"
CLIENT = DIRECTORY / "client_secret.json"
SAMPLE = ROOT / "events" / "ses-notification.json"

PORTS = {"LOCAL_SMTP_PORT": 2525, "LOCAL_AWS_PORT": 4566, "LOCAL_GOOGLE_PORT": 4567}

# The first one's credentials are the default ones, the others have their own parameter.
MAILBOXES = ("anna@gmail.com", "ben@gmail.com", "carla@gmail.com")
RULES: tuple[tuple[str, str, str | list[str]], ...] = (
    ("anna@example.com", "forward-to-gmail", MAILBOXES[0]),
    ("ben@example.com", "forward-to-gmail", MAILBOXES[1]),
    ("team@example.com", "forward-to-gmail", list(MAILBOXES)),
    ("archive@example.com", "store", ""),
    ("noreply@example.com", "drop", ""),
    ("*@carla.example", "forward-to-gmail", MAILBOXES[2]),
    ("*", "bounce", ""),
)


def main() -> int:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    try:
        smtp, aws, google = (_number(name, int, 0, 65535, port) for name, port in PORTS.items())
        _refuse_shared(smtp, aws, google)
        factor = _number("LOCAL_TIME_FACTOR", float, 0.001, 1, 1)
        host = _host()
        planned = _faults()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    DIRECTORY.mkdir(exist_ok=True)
    with (DIRECTORY / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # It would take the other's certificates and logs away.
            print(f"The embedded cloud runs here already: see {ENDPOINTS}", file=sys.stderr)
            return 2
        return _serve(smtp, aws, google, host, factor, planned, stopping)


def _number(
    name: str, kind: Callable[[str], float], least: float, most: float, default: float
) -> Any:
    """A number out of the environment; ValueError says which variable takes what."""
    text = os.environ.get(name) or str(default)
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        kinds = "whole number" if kind is int else "number"
        raise ValueError(f"{name}={text}: expected a {kinds} from {least} to {most}")
    return number


def _refuse_shared(*ports: int) -> None:
    """Ports that are taken are found when they are opened, but for those that we take ourselves."""
    named: dict[int, str] = {}
    for name, port in zip(PORTS, ports, strict=True):
        if port and port in named:
            raise ValueError(f"{name}={port}: {named[port]} has this port already")
        named[port] = name


def _host() -> str:
    """Empty for the usual one."""
    host = os.environ.get("LOCAL_HOST", "")
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError):  # the latter of names that cannot be a host's
        raise ValueError(f"LOCAL_HOST={host}: expected an IPv4 address of this machine") from None
    return host


def _faults() -> list[faults.Fault]:
    try:
        return faults.parse(os.environ.get("LOCAL_FAULTS", ""))
    except ValueError as error:
        raise ValueError(f"LOCAL_FAULTS: {error}") from None


def _serve(
    smtp: int,
    aws: int,
    google: int,
    host: str,
    factor: float,
    planned: list[faults.Fault],
    stopping: threading.Event,
) -> int:
    print("Starting the embedded cloud …", flush=True)
    # These take seconds to import: say something first.
    from local import sam
    from local.cloud import HOST, Cloud, PortTakenError

    cloud = Cloud(
        ROOT,
        time_factor=factor,
        # Whoever tries it out sends all emails from one address, in hours that take 72 s.
        parameters={"BouncesPerSenderPerHour": "100000"},
        smtp_port=smtp,
        aws_port=aws,
        google_port=google,
        host=host or HOST,
        directory=DIRECTORY,
        faults=faults.Faults(0, planned) if planned else None,
    )
    try:
        cloud.start()
    except PortTakenError as error:
        print(f"{error}. Choose others with {', '.join(PORTS)}.", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(cloud.stop)
        for mailbox in MAILBOXES:
            cloud.add_mailbox(mailbox, default=mailbox == MAILBOXES[0])
        for pattern, action, target in RULES:
            cloud.put_rule(pattern, action, target)
        cloud.runtime.prewarm()
        bounces = cleanup.enter_context(bounce_list(cloud))
        send_sample(cloud)
        sam.write(cloud, DIRECTORY)
        SHELL.write_text(shell(cloud))
        cleanup.callback(SHELL.unlink, missing_ok=True)
        CONFIG.write_text(config(cloud))
        CLIENT.write_text(json.dumps(client(cloud), indent=2) + "\n")
        ENDPOINTS.write_text(json.dumps(endpoints(cloud, bounces), indent=2) + "\n")
        cleanup.callback(ENDPOINTS.unlink, missing_ok=True)
        print(instructions(cloud, bounces), flush=True)
        stopping.wait()
        print("\nStopping …", flush=True)
    return 0


def send_sample(cloud: Any) -> None:
    """The email that the sample events are about, so that they work here as they are."""
    notification = json.loads(SAMPLE.read_text())
    cloud.send(
        (SAMPLE.parent / "minutes.eml").read_bytes(),
        notification["mail"]["source"],
        notification["receipt"]["recipients"],
        message_id=notification["mail"]["messageId"],
    )


def shell(cloud: Any) -> str:
    """Lines for a shell, after which `aws` and `sesmail` reach this cloud and nothing else."""
    region = cloud.client("sqs").meta.region_name
    binaries = ROOT / ".venv" / "bin"
    to_google = {
        # Programs that know both prefer the one in small letters.
        "HTTPS_PROXY": cloud.google_url,
        "https_proxy": cloud.google_url,
        "REQUESTS_CA_BUNDLE": cloud.google.ca_file,
        "HTTPLIB2_CA_CERTS": cloud.google.ca_file,
        "OAUTHLIB_INSECURE_TRANSPORT": "1",  # the page of consent, see client()
    }
    google = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in to_google.items())
    return f"""\
# Whatever else leads to AWS itself: a profile, a session, an address for one service.
for name in $(env | sed -n 's/^\\(AWS_[A-Z0-9_]*\\)=.*/\\1/p'); do unset "$name"; done
export AWS_ENDPOINT_URL={cloud.aws_url} AWS_REGION={region} AWS_DEFAULT_REGION={region}
export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local SESMAIL_ENV={cloud.environment}
# A profile ses-mail, which the runbook uses, and no other.
export AWS_CONFIG_FILE={shlex.quote(str(CONFIG))} AWS_SHARED_CREDENTIALS_FILE=/dev/null
export NO_PROXY="{cloud.host},localhost${{NO_PROXY:+,$NO_PROXY}}"
export no_proxy="$NO_PROXY${{no_proxy:+,$no_proxy}}" PATH="$PATH:"{shlex.quote(str(binaries))}
# Neither `aws sqs` of version 1 nor versions before 1.29 and 2.13 obey AWS_ENDPOINT_URL.
aws() {{ command aws --endpoint-url "$AWS_ENDPOINT_URL" "$@"; }}
# Google's names lead to the local Google, for this command alone.
sesmail() {{ {google} {shlex.quote(str(binaries / "sesmail"))} "$@"; }}
"""


def config(cloud: Any) -> str:
    """AWS's configuration file with the one profile that the runbook uses."""
    return f"""\
[profile ses-mail]
region = {cloud.client("sqs").meta.region_name}
endpoint_url = {cloud.aws_url}
aws_access_key_id = local
aws_secret_access_key = local
"""


def client(cloud: Any) -> dict[str, Any]:
    """An OAuth client whose page of consent any browser finds, as it knows no other Google."""
    from local.google import AUTH_PATH

    cloud.google.person = MAILBOXES[0]
    registered = cloud.google.add_client()["installed"]
    return {"installed": {**registered, "auth_uri": f"{cloud.google_url}{AUTH_PATH}"}}


def endpoints(cloud: Any, bounces: str) -> dict[str, Any]:
    """What `.local/endpoints.json` tells other programs."""
    host, port = cloud.smtp
    return {
        "environment": cloud.environment,
        "region": cloud.client("sqs").meta.region_name,
        "smtp": {"host": host, "port": port},
        "aws": cloud.aws_url,
        "google": cloud.google_url,
        "google_token": cloud.google.reader_token,
        "mailboxes": list(MAILBOXES),
        "bounces": bounces,
    }


@contextlib.contextmanager
def bounce_list(cloud: Any) -> Any:
    """URL whose GET answers the bounces so far."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            names = ("to", "sender", "recipients", "messageId")
            listed = [{name: bounce[name] for name in names} for bounce in list(cloud.bounces)]
            body = json.dumps(listed).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/bounces"
    finally:
        server.shutdown()
        server.server_close()


def instructions(cloud: Any, bounces: str) -> str:
    host, port = cloud.smtp
    mailbox = MAILBOXES[0]
    clock = "Its clock is this machine's."
    if cloud.factor != 1:
        clock = (
            f"One second here is {1 / cloud.factor:g} seconds there.\nIts clock runs ahead: "
            "executions, records and logs have its time, S3, SQS and SSM this machine's."
        )
    width = max(len(pattern) for pattern, _, _ in RULES)
    sample = json.loads(SAMPLE.read_text())["mail"]["messageId"]
    rules = "\n".join(
        f"  {pattern:{width}}  {action}  {target if isinstance(target, str) else ', '.join(target)}"
        for pattern, action, target in RULES
    )
    return f"""
The embedded cloud runs. Ctrl-C ends it. {clock}

Routing rules:
{rules}

Send an email (any SMTP client will do):
  python3 -c "import smtplib; smtplib.SMTP('{host}', {port}).sendmail(
    'you@example.org', ['anna@example.com'], 'Subject: Hello\\r\\n\\r\\nHi!\\r\\n')"

Look at it with sesmail and aws (version 1 or 2), in another shell:
  . {shlex.quote(str(SHELL))}
  sesmail health
  sesmail trace {sample}
  aws stepfunctions list-executions --state-machine-arn {cloud.outputs["StateMachineArn"]}

Renew the Gmail token; the browser gets the local Google's consent:
  sesmail token set --consent --client {shlex.quote(str(CLIENT))}

Run one function with a sample event (needs Docker, and `sam build` once):
  sam local invoke RouterFunction --event events/router.json

Read a mailbox, and the bounces:
  curl -H "Authorization: Bearer {cloud.google.reader_token}" \\
    {cloud.google_url}/gmail/v1/users/{mailbox}/messages
  curl {bounces}

All of it as JSON: {ENDPOINTS}. The functions' logs: {DIRECTORY / "logs"}
"""


if __name__ == "__main__":
    sys.exit(main())
