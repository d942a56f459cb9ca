"""The `sesmail` commands that the documents show, as they stand there, by the installed script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ses_mail.credentials import parameter_name

from local.cloud import Cloud
from local.iam import REGION
from tests.template.test_documentation import DOCUMENTS, commands

YOU = "you@gmail.com"
# $BROWSER of who agrees to everything, which is what the small Google's page does.
BROWSER = """#!{python}
import sys, requests
requests.get(sys.argv[1], timeout=60)
"""

SHOWN = {
    document: shown
    for document in DOCUMENTS
    if (shown := [c for c in commands(document) if c.startswith("sesmail")])
}


@pytest.fixture
def folder(cloud: Cloud, tmp_path: Path) -> Path:
    """What the person at the keyboard has, and no token of another test's."""
    ssm = cloud.client("ssm")
    pages = ssm.get_paginator("describe_parameters").paginate().search("Parameters[].Name")
    for parameter in list(pages):
        ssm.delete_parameter(Name=parameter)
    browser = tmp_path / "browser"
    browser.write_text(BROWSER.format(python=sys.executable))
    browser.chmod(0o755)
    cloud.google.person = YOU
    (tmp_path / "client_secret.json").write_text(json.dumps(cloud.google.add_client()))
    (tmp_path / "token.json").write_text(json.dumps(cloud.google.add_mailbox(YOU)))
    return tmp_path


@pytest.fixture
def message_id(cloud: Cloud) -> str:
    """An email that came, when no rule was there yet."""
    for item in cloud.client("dynamodb").scan(TableName="ses-email-routing-test")["Items"]:
        key = {"PK": item["PK"], "SK": item["SK"]}
        cloud.client("dynamodb").delete_item(TableName="ses-email-routing-test", Key=key)
    cloud.add_mailbox(YOU)
    name = cloud.send(b"Subject: Hello\r\n\r\nHello\r\n", "zoe@x.example", ["support@example.com"])
    cloud.wait_idle(240)
    return name


def run(cloud: Cloud, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "AWS_ENDPOINT_URL": cloud.aws_url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "operator",
        "AWS_SECRET_ACCESS_KEY": "local",
        "HTTPS_PROXY": cloud.google.url,
        "HTTPLIB2_CA_CERTS": str(cloud.google.ca_file),
        "REQUESTS_CA_BUNDLE": str(cloud.google.ca_file),
        # In the background, as a real browser: the command answers it only once it has been opened.
        "BROWSER": f"{folder}/browser %s &",
    }
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("document", SHOWN)
def test_the_commands_of_a_document_work(
    cloud: Cloud, folder: Path, message_id: str, document: str
) -> None:
    for command in SHOWN[document]:
        done = run(cloud, folder, command.replace("MESSAGE_ID", message_id))
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    cloud.wait_idle(240)


def test_setup_leaves_what_the_alternative_leaves(
    cloud: Cloud, folder: Path, message_id: str
) -> None:
    for command in SHOWN["docs/setup.md"]:
        assert run(cloud, folder, command).returncode == 0
    stored = cloud.client("ssm").get_parameter(
        Name="/ses-mail/test/gmail-token", WithDecryption=True
    )["Parameter"]["Value"]
    assert json.loads(stored) == json.loads((folder / "token.json").read_text())
    before = len(cloud.google.messages(YOU))
    own = parameter_name("/ses-mail/test/gmail-tokens/", YOU)
    cloud.client("ssm").delete_parameter(Name=own)
    cloud.send(b"Subject: Hello\r\n\r\nHello\r\n", "zoe@x.example", ["support@example.com"])
    cloud.wait_idle(240)
    assert len(cloud.google.messages(YOU)) == before + 1
    (first, *_) = (folder / "rules.jsonl").read_text().splitlines()
    assert json.loads(first)["targets"] == [YOU]
