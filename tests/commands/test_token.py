"""`sesmail token` against the embedded cloud and its Google."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httplib2
import pytest
import requests
from ses_mail import clients

from cli.commands.token import put_parameter
from cli.errors import CommandError
from cli.session import Session
from local.cloud import Cloud
from local.google import Fault, Google

from .conftest import Ran, Sesmail

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws

DEFAULT = "/ses-mail/test/gmail-token"
PREFIX = "/ses-mail/test/gmail-tokens/"
PATIENCE = 240.0
ANNA = "anna@token.example"


@pytest.fixture(autouse=True)
def google(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """The embedded cloud's Google on the way out of this process; afterwards no token is left."""
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", cloud.google.url)
    # HTTPLIB2_CA_CERTS is read once, at import.
    monkeypatch.setattr(httplib2, "CA_CERTS", str(cloud.google.ca_file))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cloud.google.ca_file))
    _remove_tokens(cloud)
    yield cloud.google
    cloud.google.faults.clear()
    cloud.google.person = ""
    _remove_tokens(cloud)


def _remove_tokens(cloud: Cloud) -> None:
    cloud.wait_idle(PATIENCE)
    for name in parameters(cloud):
        cloud.client("ssm").delete_parameter(Name=name)


def parameters(cloud: Cloud) -> dict[str, Any]:
    """What is stored, under the names of the parameters."""
    pages = cloud.client("ssm").get_paginator("get_parameters_by_path")
    found = pages.paginate(Path="/ses-mail/test", Recursive=True, WithDecryption=True)
    stored = [parameter for page in found for parameter in page["Parameters"]]
    assert {parameter["Type"] for parameter in stored} <= {"SecureString"}
    return {parameter["Name"]: json.loads(parameter["Value"]) for parameter in stored}


def written(folder: Path, fields: Any) -> Path:
    file = folder / "token.json"
    file.write_text(json.dumps(fields))
    return file


def assert_silent(ran: Ran, fields: dict[str, Any]) -> None:
    """No secret was printed."""
    for name in ("refresh_token", "client_secret", "private_key"):
        assert str(fields.get(name, "no such field")) not in ran.out + ran.err


# -- set -------------------------------------------------------------------------------------------


def test_a_token_for_a_mailbox(cloud: Cloud, sesmail: Sesmail, tmp_path: Path) -> None:
    fields = cloud.google.add_mailbox(ANNA)
    file = written(tmp_path, {**fields, "token": "ya29.stale", "scopes": ["x"]})
    ran = sesmail(f"token set --mailbox Anna+x@Token.example --file {file} --json")
    assert ran.json == {
        "parameter": f"{PREFIX}anna_40token.example",
        "mailbox": ANNA,
        "type": "authorized_user",
        "checked": True,
        "version": 1,
    }
    assert parameters(cloud) == {f"{PREFIX}anna_40token.example": fields}
    assert_silent(ran, fields)
    again = sesmail(f"token set --mailbox {ANNA} --file {file}")
    assert re.search(r"^version\t2$", again.out, re.MULTILINE)
    assert_silent(again, fields)


def test_the_default_token_from_standard_input(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = cloud.google.add_mailbox(ANNA)
    with written(tmp_path, fields).open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        ran = sesmail("token set --file -")
    assert parameters(cloud) == {DEFAULT: fields}
    assert_silent(ran, fields)


def test_a_service_account(cloud: Cloud, sesmail: Sesmail, tmp_path: Path) -> None:
    fields = cloud.google.add_service_account([ANNA])
    file = written(tmp_path, fields)
    ran = sesmail(f"token set --mailbox {ANNA} --file {file} --json")
    assert ran.json["type"] == "service_account"
    (stored,) = parameters(cloud).values()
    assert stored["private_key"] == fields["private_key"]
    assert "project_id" not in stored
    assert_silent(ran, fields)
    refused = sesmail(f"token set --mailbox other@token.example --file {file}", code=1)
    assert "unauthorized_client" in refused.err
    assert len(parameters(cloud)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"refresh_token": "1//0dead"}, "invalid_grant"),
        ({"client_secret": "GOCSPX-wrong"}, "invalid_client"),
    ],
)
def test_a_token_that_google_refuses_changes_nothing(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    good = cloud.google.add_mailbox(ANNA)
    sesmail(f"token set --file {written(tmp_path, good)}")
    bad = {**good, **change}
    ran = sesmail(f"token set --file {written(tmp_path, bad)}", code=1)
    assert said in ran.err
    assert_silent(ran, bad)
    assert parameters(cloud) == {DEFAULT: good}
    sesmail(f"token set --no-check --file {written(tmp_path, bad)}")
    assert parameters(cloud) == {DEFAULT: bad}


def test_without_an_answer_nothing_is_changed(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path
) -> None:
    file = written(tmp_path, cloud.google.add_mailbox(ANNA))
    cloud.google.faults.append(Fault("token", 503, "backendError", times=100))
    assert "--no-check" in sesmail(f"token set --file {file}", code=4).err
    assert parameters(cloud) == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"refresh_token": "1//r", "client_id": "c"}, "lacks client_secret"),
        ({"type": "service_account", "private_key": "k"}, "lacks client_email, token_uri"),
        ({"installed": {}}, "this is the OAuth client"),
        ([], "not a JSON object"),
        (
            {"refresh_token": "r" * 4096, "client_id": "c", "client_secret": "s"},
            "bytes are too many",
        ),
    ],
)
def test_what_is_no_token_changes_nothing(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, fields: Any, said: str
) -> None:
    assert said in sesmail(f"token set --file {written(tmp_path, fields)}", code=2).err
    assert parameters(cloud) == {}


@pytest.mark.parametrize(
    "line",
    [
        "token set",
        "token set --consent",
        "token set --client c.json",
        "token set --consent --client c.json --file t.json",
        "token set --file t.json --client c.json",
        "token set --file nowhere.json",
        "token set --consent --client nowhere.json",
        "token set --mailbox anna --file t.json",
        "token check --mailbox anna",
    ],
)
def test_wrong_options(cloud: Cloud, sesmail: Sesmail, line: str) -> None:
    assert sesmail(line, code=2).err
    assert parameters(cloud) == {}


def test_a_refused_write_does_not_quote_the_token(aws: "Aws") -> None:
    error = {"__type": "ValidationException", "message": "Value '1//secret' at 'value' is bad"}
    aws.wire.reply("ssm.PutParameter", lambda _: (400, json.dumps(error).encode()))
    session = Session("test")
    session.ssm = clients.ssm()
    with pytest.raises(CommandError, match="ValidationException") as raised:
        put_parameter(session, DEFAULT, "1//secret")
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__, "nor does a stack trace"


def test_twenty_emails_are_delivered_once_the_token_is_renewed(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path
) -> None:
    cloud.put_rule("renewed@example.com", "forward-to-gmail", ANNA)
    file = written(tmp_path, cloud.google.add_mailbox(ANNA))
    sesmail(f"token set --mailbox {ANNA} --file {file}")
    cloud.wait_idle(PATIENCE)
    cloud.google.revoke(ANNA)
    before = len(cloud.google.messages(ANNA))
    wanted = Counter(
        cloud.send(b"Subject: held up\r\n\r\nHello\r\n", "zoe@x.example", ["renewed@example.com"])
        for _ in range(20)
    )
    cloud.wait_idle(PATIENCE)
    letters = cloud.dead_letters("GmailForwarderDlq")
    assert Counter(letter["mail"]["messageId"] for letter in letters) == wanted
    assert len(cloud.google.messages(ANNA)) == before
    written(tmp_path, cloud.google.add_mailbox(ANNA))
    sesmail(f"token set --mailbox {ANNA} --file {file}")
    cloud.wait_idle(PATIENCE)
    assert len(cloud.google.messages(ANNA)) == before + 20
    assert cloud.dead_letters("GmailForwarderDlq") == []


# -- the consent -----------------------------------------------------------------------------------


class Browser(threading.Thread):
    """Follows the address that the command prints, as the person's browser does."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(daemon=True)
        self.address = ""
        self.printed = ""
        self._capsys = capsys
        self._page = ""

    def run(self) -> None:
        for _ in range(2400):
            self.printed += self._capsys.readouterr().err
            if found := re.search(r"https://accounts\.google\.com/\S+", self.printed):
                self.address = found[0]
                self._page = requests.get(self.address, timeout=60).text
                return
            time.sleep(0.05)

    @property
    def page(self) -> str:
        """What it shows in the end."""
        self.join(120)
        return self._page


@pytest.fixture
def browser(capsys: pytest.CaptureFixture[str]) -> Iterator[Browser]:
    person = Browser(capsys)
    person.start()
    yield person
    person.join(120)


def test_a_token_by_consent(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, browser: Browser
) -> None:
    client = cloud.google.add_client()
    file = written(tmp_path, client)
    cloud.google.person = ANNA
    ran = sesmail(f"token set --mailbox {ANNA} --consent --client {file} --no-browser --json")
    assert ran.json["version"] == 1
    assert "flow has completed" in browser.page
    asked = parse_qs(urlsplit(browser.address).query)
    assert asked["scope"] == ["https://www.googleapis.com/auth/gmail.insert"]
    assert (asked["access_type"], asked["prompt"]) == (["offline"], ["consent"])
    assert asked["login_hint"] == [ANNA]
    (stored,) = parameters(cloud).values()
    assert stored["client_id"] == client["installed"]["client_id"]
    assert_silent(Ran(0, ran.out, ran.err + browser.printed), stored)
    (row,) = sesmail("token check --json").lines
    assert (row["mailbox"], row["result"]) == (ANNA, "valid")


def test_a_person_who_declines(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, browser: Browser
) -> None:
    file = written(tmp_path, cloud.google.add_client())
    ran = sesmail(f"token set --consent --client {file} --no-browser", code=1)
    assert "access_denied" in ran.err
    assert browser.page
    assert parameters(cloud) == {}


def test_a_client_that_google_does_not_know(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, browser: Browser
) -> None:
    client = cloud.google.add_client()
    client["installed"]["client_secret"] = "GOCSPX-wrong"
    cloud.google.person = ANNA
    file = written(tmp_path, client)
    assert "invalid_client" in (
        sesmail(f"token set --consent --client {file} --no-browser", code=1).err
    )
    assert browser.page


def test_a_client_that_is_none(cloud: Cloud, sesmail: Sesmail, tmp_path: Path) -> None:
    for fields in (cloud.google.add_mailbox(ANNA), [], {"installed": {}}):
        file = written(tmp_path, fields)
        assert (
            "this is not an OAuth client"
            in sesmail(f"token set --consent --client {file}", code=2).err
        )


# -- check -----------------------------------------------------------------------------------------


def test_all_tokens_are_checked(cloud: Cloud, sesmail: Sesmail) -> None:
    cloud.add_mailbox(ANNA)
    cloud.add_mailbox("ben@token.example", default=True)
    rows = sesmail("token check --json").lines
    assert [(r["parameter"], r["mailbox"], r["result"], r["version"]) for r in rows] == [
        (DEFAULT, None, "valid", 1),
        (f"{PREFIX}anna_40token.example", ANNA, "valid", 1),
    ]
    assert rows[0]["last_modified"].endswith("Z")
    cloud.google.revoke(ANNA)
    ran = sesmail("token check", code=1)
    assert "invalid_grant" in ran.out
    assert sesmail("token check --mailbox ben@token.example").code == 0


def test_the_token_that_serves_a_mailbox(cloud: Cloud, sesmail: Sesmail) -> None:
    key = cloud.google.add_service_account([ANNA])
    cloud.client("ssm").put_parameter(Name=DEFAULT, Value=json.dumps(key), Type="SecureString")
    (row,) = sesmail(f"token check --mailbox {ANNA} --json").lines
    assert (row["parameter"], row["mailbox"], row["result"]) == (DEFAULT, ANNA, "valid")
    (row,) = sesmail("token check --mailbox other@token.example --json", code=1).lines
    assert (row["result"], row["error"]) == ("invalid", "unauthorized_client")


def test_no_token_at_all(sesmail: Sesmail) -> None:
    (row,) = sesmail("token check --json", code=1).lines
    assert (row["parameter"], row["error"]) == (DEFAULT, "missing_credentials")
    (row,) = sesmail(f"token check --mailbox {ANNA} --json", code=1).lines
    assert row["parameter"] == f"{PREFIX}anna_40token.example"


def test_no_answer_is_not_invalid(cloud: Cloud, sesmail: Sesmail) -> None:
    cloud.add_mailbox(ANNA)
    cloud.wait_idle(PATIENCE)
    cloud.google.faults.append(Fault("token", 503, "backendError", times=100))
    (row,) = sesmail("token check --json", code=4).lines
    assert row["result"] == "unknown"
