"""`sesmail routes` against the embedded cloud, and against the router itself."""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import router
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from ses_mail import clients, tables

from cli import rule_table, rules
from cli.commands.routes import explain
from cli.errors import ChangedMeanwhileError
from cli.session import Session
from local.cloud import Cloud
from local.iam import ACCOUNT, REGION

from .conftest import Sesmail

if TYPE_CHECKING:
    from tests.fixtures.aws import Aws
    from tests.fixtures.lambda_ import LambdaContext, Logs

TABLE = "ses-email-routing-test"
ANNA, BEN = "anna@gmail.com", "ben@gmail.com"
EMAIL = b"From: a@sender.example\r\nSubject: Routed\r\n\r\nHello\r\n"


@pytest.fixture(autouse=True)
def _empty_table(cloud: Cloud) -> None:
    for item in items(cloud):
        key = {"PK": {"S": item["PK"]}, "SK": {"S": item["SK"]}}
        cloud.client("dynamodb").delete_item(TableName=TABLE, Key=key)


@pytest.fixture
def session(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "operator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    return Session("test", region=REGION, endpoint_url=cloud.aws_url)


def items(cloud: Cloud) -> list[dict[str, Any]]:
    found = cloud.client("dynamodb").scan(TableName=TABLE)["Items"]
    return [tables.deserialize(item) for item in found]


def put(cloud: Cloud, **item: Any) -> None:
    """An item as somebody with the console writes it."""
    cloud.client("dynamodb").put_item(TableName=TABLE, Item=tables.serialize(item))


# -- one rule --------------------------------------------------------------------------------------


def test_a_rule_that_was_added_routes_the_next_email(cloud: Cloud, sesmail: Sesmail) -> None:
    cloud.add_mailbox(ANNA)
    added = sesmail(f"routes add Hello@Example.com forward-to-gmail {ANNA} --json").json
    assert added["change"] == "added"
    assert added["rule"]["pattern"] == "hello@example.com"
    (item,) = items(cloud)
    assert item | {"history": 0, "created_at": 0, "updated_at": 0} == {
        "PK": "ROUTE#hello@example.com",
        "SK": "RULE#v1",
        "entity_type": "ROUTE",
        "recipient": "hello@example.com",
        "action": "forward-to-gmail",
        "target": ANNA,
        "enabled": True,
        "description": "",
        "created_at": 0,
        "updated_at": 0,
        "updated_by": f"arn:aws:sts::{ACCOUNT}:user/moto",
        "history": 0,
    }
    before = len(cloud.google.messages(ANNA))
    cloud.send(EMAIL, "a@sender.example", ["hello+x@example.com"])
    cloud.wait_idle()
    assert len(cloud.google.messages(ANNA)) == before + 1


def test_a_rule_that_is_there_is_not_overwritten(cloud: Cloud, sesmail: Sesmail) -> None:
    sesmail("routes add x@example.com bounce")
    refused = sesmail("routes add X@example.com store", code=2)
    assert "there is a rule for x@example.com already" in refused.err
    assert items(cloud)[0]["action"] == "bounce"


@pytest.mark.parametrize(
    "line",
    [
        "routes add *@ bounce",
        "routes add 'x y@example.com' bounce",
        "routes add x@example.com bounce you@gmail.com",
        "routes add x@example.com forward-to-gmail",
        "routes add x@example.com forward-to-gmail you",
        "routes add x@example.com foward",
        "routes add x@example.com",
    ],
)
def test_what_is_no_rule_is_refused(cloud: Cloud, sesmail: Sesmail, line: str) -> None:
    assert sesmail(line, code=2).err
    assert items(cloud) == []


def test_list(cloud: Cloud, sesmail: Sesmail) -> None:
    assert "No rules." in sesmail("routes list").err
    sesmail(f"routes add b@x.example forward-to-gmail {ANNA} {BEN} --description 'To [bold]both'")
    sesmail("routes add '*' bounce")
    sesmail("routes add '*@x.example' store --disabled")
    put(cloud, PK="ROUTE#a@x.example", SK="RULE#v1", action="foward", description="\x1b[31mred")
    listed = sesmail("routes list")
    assert "To [bold]both" in listed.out
    assert "\x1b" not in listed.out
    assert "*@x.example" not in listed.out
    assert "Malformed: a@x.example" in listed.err
    assert "1 more" in listed.err
    assert [rule["pattern"] for rule in sesmail("routes list --disabled --json").lines] == [
        "*@x.example"
    ]
    every = sesmail("routes list --all --json").lines
    assert [rule["pattern"] for rule in every] == ["a@x.example", "b@x.example", "*@x.example", "*"]
    assert every[1]["targets"] == [ANNA, BEN]
    assert "unknown action" in every[0]["problem"]


def test_a_rule_and_its_history(cloud: Cloud, sesmail: Sesmail) -> None:
    sesmail("routes add x@example.com store")
    sesmail(f"routes update X@example.com --action forward-to-gmail --target {ANNA} --target {BEN}")
    sesmail("routes update x@example.com --description why")
    sesmail("routes disable x@example.com")
    sesmail("routes enable x@example.com")
    sesmail("routes update x@example.com --action drop")
    shown = sesmail("routes show x@example.com --json").json
    assert [entry["change"] for entry in shown["history"]] == [
        "added",
        f"action store → forward-to-gmail, target none → {ANNA}, {BEN}",
        "description",
        "disabled",
        "enabled",
        f"action forward-to-gmail → drop, target {ANNA}, {BEN} → none",
    ]
    assert {entry["by"] for entry in shown["history"]} == {f"arn:aws:sts::{ACCOUNT}:user/moto"}
    assert (shown["description"], shown["enabled"], shown["targets"]) == ("why", True, [])
    assert "description" in sesmail("routes show x@example.com").out
    assert items(cloud)[0]["target"] == ""


def test_what_is_so_already_is_not_written_again(cloud: Cloud, sesmail: Sesmail) -> None:
    sesmail(f"routes add x@example.com forward-to-gmail {ANNA} --description d")
    before = items(cloud)
    for line in (
        "routes enable x@example.com",
        "routes update x@example.com --description d",
        f"routes update x@example.com --target {ANNA.upper()}",
    ):
        assert sesmail(f"{line} --json").json["change"] is None
    assert items(cloud) == before


@pytest.mark.parametrize(
    "line",
    [
        "routes update x@example.com",
        "routes update x@example.com --target you",
        "routes update x@example.com --action bounce --target you@gmail.com",
        "routes update x@example.com --action foward",
    ],
)
def test_an_update_to_what_is_no_rule_is_refused(cloud: Cloud, sesmail: Sesmail, line: str) -> None:
    sesmail(f"routes add x@example.com forward-to-gmail {ANNA}")
    before = items(cloud)
    assert sesmail(line, code=2).err
    assert items(cloud) == before


@pytest.mark.parametrize("command", ["show", "enable", "disable", "update --action drop", "remove"])
def test_a_rule_that_is_not_there(sesmail: Sesmail, command: str) -> None:
    assert "no rule for x@example.com" in sesmail(f"routes {command} X@example.com", code=3).err


def test_remove(cloud: Cloud, sesmail: Sesmail) -> None:
    sesmail("routes add x@example.com bounce")
    assert "add --yes" in sesmail("routes remove x@example.com", code=2).err
    assert len(items(cloud)) == 1
    assert sesmail("routes remove x@example.com --yes --json").json["change"] == "removed"
    assert items(cloud) == []


def test_rules_written_by_hand_can_be_mended(cloud: Cloud, sesmail: Sesmail) -> None:
    put(cloud, PK="ROUTE#x@example.com", SK="RULE#v1", action="foward", target={ANNA}, owner="me")
    assert "unknown action" in sesmail("routes enable x@example.com", code=2).err
    sesmail("routes disable x@example.com")
    sesmail(f"routes update x@example.com --action forward-to-gmail --target {BEN}")
    sesmail("routes enable x@example.com")
    (item,) = items(cloud)
    assert (item["action"], item["target"], item["enabled"]) == ("forward-to-gmail", BEN, True)
    assert item["owner"] == "me"
    assert item["recipient"] == "x@example.com"


BROKEN: dict[str, dict[str, Any]] = {
    "no fields": {},
    "nulls": {"action": None, "target": None, "enabled": None, "description": None},
    "numbers": {"action": 1, "target": 5, "enabled": 1, "description": 7, "history": 3},
    "sets": {"action": {"a", "b"}, "target": {1, 2}, "enabled": {"x"}, "recipient": {b"r"}},
    "maps": {"action": {"S": "drop"}, "target": {"S": ANNA}, "enabled": {"BOOL": True}},
    "lists": {"action": ["drop"], "target": [ANNA, 5, None], "enabled": [], "history": [1, {}]},
    "bytes": {"action": b"drop", "target": b"a@b.example", "enabled": b"1"},
    "texts": {"action": "foward", "target": "anna", "enabled": "true"},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("first", ["--action forward-to-gmail", f"--target {BEN}"])
def test_any_broken_rule_can_be_fixed_piece_by_piece(
    cloud: Cloud, sesmail: Sesmail, broken: dict[str, Any], first: str
) -> None:
    put(cloud, PK="ROUTE#x@example.com", SK="RULE#v1", owner="me", **broken)
    ran = sesmail(f"routes update x@example.com {first}", code=None)
    assert ("Still malformed" in ran.err) == (ran.code == 1)
    sesmail(f"routes update x@example.com --target {BEN} --action forward-to-gmail", code=None)
    assert sesmail("routes enable x@example.com").code == 0
    (item,) = items(cloud)
    assert (item["action"], item["target"]) == ("forward-to-gmail", BEN)
    assert (item.get("enabled", True), item["owner"]) == (True, "me")
    assert item.get("description") == broken.get("description")
    assert sesmail("routes show x@example.com --json").json["problem"] is None


def test_fixing_keeps_what_was_right_and_says_what_is_still_wrong(
    cloud: Cloud, sesmail: Sesmail
) -> None:
    put(
        cloud,
        PK="ROUTE#x@example.com",
        SK="RULE#v1",
        action="foward",
        target=[ANNA, BEN],
        enabled="yes",
        description="both",
    )
    ran = sesmail("routes update x@example.com --action forward-to-gmail --json", code=1)
    assert "enabled is 'yes'" in ran.err
    assert "enabled is 'yes'" in ran.json["rule"]["problem"]
    (item,) = items(cloud)
    assert (item["target"], item["description"]) == ([ANNA, BEN], "both")
    assert sesmail("routes enable x@example.com").err == ""
    # The targets are asked for only where the old ones never meant anything.
    put(cloud, PK="ROUTE#y@example.com", SK="RULE#v1", action="store", target=ANNA, enabled="yes")
    refused = sesmail("routes update y@example.com --action forward-to-gmail", code=2)
    assert "needs at least one target" in refused.err


def test_a_pattern_that_never_matches_can_only_be_removed(cloud: Cloud, sesmail: Sesmail) -> None:
    put(cloud, PK="ROUTE#X@Example.com", SK="RULE#v1", action="drop", enabled=False)
    sesmail("routes add x@example.com store")
    assert "never matches" in sesmail("routes enable X@Example.com", code=2).err
    assert "never matches" in sesmail("routes update X@Example.com --action drop", code=2).err
    assert "looked up as" in sesmail("routes show X@Example.com --json").json["problem"]
    sesmail("routes remove X@Example.com --yes")
    assert [item["PK"] for item in items(cloud)] == ["ROUTE#x@example.com"]


# -- somebody else ---------------------------------------------------------------------------------

BY_HAND: dict[str, Any] = {
    "target": BEN,
    "action": "store",
    "enabled": False,
    "description": "?",
    "updated_at": "2026-01-01T00:00:00Z",
    "history": [],
    "owner": "me",
}


@pytest.mark.parametrize("field", BY_HAND)
@pytest.mark.parametrize(
    "written", ["as the runbook does", "by the command"], ids=["seed", "sesmail"]
)
def test_an_edit_that_was_not_seen_is_not_undone(
    cloud: Cloud, session: Session, field: str, written: str
) -> None:
    if written == "by the command":
        rule = rules.wanted("x@example.com", "forward-to-gmail", [ANNA, "c@gmail.com"])
        rule_table.write(session, None, rule.attributes())
    else:
        put(cloud, PK="ROUTE#x@example.com", SK="RULE#v1", action="forward-to-gmail", target={ANNA})
    seen = rule_table.find(session, "x@example.com")
    if field == "owner":
        seen = {**seen, "owner": "you"}  # as if it had been read so
    put(cloud, **(seen | {field: BY_HAND[field]}))
    before = items(cloud)
    with pytest.raises(ChangedMeanwhileError, match="was changed by somebody else"):
        rule_table.write(session, seen, {"description": "mine"})
    with pytest.raises(ChangedMeanwhileError):
        rule_table.remove(session, seen)
    assert items(cloud) == before


def test_of_ten_who_edit_at_once_one_wins_and_the_others_know(
    cloud: Cloud, session: Session
) -> None:
    rule_table.write(session, None, rules.wanted("x@example.com", "store").attributes())
    seen = rule_table.find(session, "x@example.com")
    lost: list[int] = []
    together = threading.Barrier(10)

    def edit(number: int) -> None:
        together.wait()
        try:
            rule_table.write(session, seen, {"description": str(number)})
        except ChangedMeanwhileError:
            lost.append(number)

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (item,) = items(cloud)
    assert len(lost) == 9
    assert int(item["description"]) not in lost


def test_a_rule_that_went_away_meanwhile(cloud: Cloud, session: Session) -> None:
    rule_table.write(session, None, rules.wanted("x@example.com", "store").attributes())
    seen = rule_table.find(session, "x@example.com")
    rule_table.remove(session, seen)
    with pytest.raises(ChangedMeanwhileError):
        rule_table.write(session, seen, {"enabled": False})
    rule_table.remove(session, seen)  # which is what was wanted
    assert items(cloud) == []


def test_an_answer_that_got_lost_is_no_edit_of_somebody_else(
    cloud: Cloud, session: Session
) -> None:
    lost: list[str] = []

    def lose(response_dict: dict[str, Any], operation_model: Any, **_: Any) -> None:
        if operation_model.name not in lost:
            lost.append(operation_model.name)
            response_dict.update(status_code=500, body=b"{}")

    for operation in ("PutItem", "DeleteItem"):
        session.dynamodb.meta.events.register(f"before-parse.dynamodb.{operation}", lose)
    rule = rules.wanted("x@example.com", "store").attributes()
    rule_table.write(session, None, rule)
    rule_table.remove(session, rule_table.find(session, "x@example.com"))
    assert lost == ["PutItem", "DeleteItem"]
    assert items(cloud) == []


def test_other_refusals_are_told_as_they_are(session: Session) -> None:
    other = Session("prod", region=REGION, endpoint_url=session.endpoint_url)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        rule_table.write(other, None, rules.wanted("x@example.com", "store").attributes())
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        rule_table.remove(other, rules.wanted("x@example.com", "store").attributes())


# -- files -----------------------------------------------------------------------------------------


def test_what_is_exported_can_be_imported(cloud: Cloud, sesmail: Sesmail, tmp_path: Path) -> None:
    sesmail(f"routes add a@x.example forward-to-gmail {ANNA} {BEN} --description 'Ünsere beiden'")
    sesmail("routes add '*@x.example' store --disabled")
    sesmail("routes add '*' bounce")
    put(
        cloud, PK="ROUTE#b@x.example", SK="RULE#v1", action="forward-to-gmail", target="B@gmail.com"
    )
    file = tmp_path / "rules.jsonl"
    assert sesmail(f"routes export {file} --json").json == {"file": str(file), "rules": 4}
    assert sesmail("routes export").out == file.read_text()
    nothing = sesmail(f"routes import {file} --replace --json").json
    assert nothing == {"changes": [], "unchanged": 4, "dry_run": False}
    before = items(cloud)
    for item in before:
        sesmail(f"routes remove '{item['PK'].removeprefix('ROUTE#')}' --yes")
    assert len(sesmail(f"routes import {file} --yes --json").json["changes"]) == 4
    assert sesmail("routes export").out == file.read_text()
    assert len(sesmail("routes export --json").lines) == 4


def test_import_shows_asks_and_writes(cloud: Cloud, sesmail: Sesmail, tmp_path: Path) -> None:
    sesmail("routes add same@x.example drop")
    sesmail("routes add other@x.example store --description old")
    sesmail("routes add gone@x.example bounce")
    before = items(cloud)
    file = tmp_path / "rules.jsonl"
    lines = [
        {"pattern": "same@x.example", "action": "drop"},
        {"pattern": "Other@x.example", "action": "forward-to-gmail", "targets": [ANNA]},
        {"pattern": "*", "action": "bounce", "enabled": False},
    ]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    dry = sesmail(f"routes import {file} --dry-run --replace")
    assert f"action store → forward-to-gmail, target none → {ANNA}" in dry.out
    assert "add --yes" in sesmail(f"routes import {file}", code=2).err
    assert items(cloud) == before
    done = sesmail(f"routes import {file} --yes --replace")
    assert "3 of 3 changes are made" in done.err
    held = {item["recipient"]: item for item in items(cloud)}
    assert set(held) == {"same@x.example", "other@x.example", "*"}
    assert (held["other@x.example"]["description"], held["*"]["enabled"]) == ("", False)
    assert len(held["other@x.example"]["history"]) == 2
    assert held["same@x.example"] in before
    assert "Nothing to do" in sesmail(f"routes import {file} --yes --replace").err


def test_import_reads_standard_input(
    cloud: Cloud, sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"pattern": "*", "action": "store"}\n'))
    sesmail("routes import - --yes")
    assert items(cloud)[0]["PK"] == "ROUTE#*"


def test_a_bad_file_changes_nothing(cloud: Cloud, sesmail: Sesmail, tmp_path: Path) -> None:
    file = tmp_path / "rules.jsonl"
    file.write_text('{"pattern": "*", "action": "store"}\n{"pattern": "*@", "action": "store"}\n')
    refused = sesmail(f"routes import {file} --yes", code=2)
    assert "line 2: '*@' is not a pattern" in refused.err
    file.write_bytes(b"\xff")
    assert "cannot be read" in sesmail(f"routes import {file} --yes", code=2).err
    assert "cannot be read" in sesmail("routes import nowhere.jsonl --yes", code=2).err
    assert items(cloud) == []


def test_a_file_that_cannot_be_written_is_named(sesmail: Sesmail, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path, tmp_path / "file" / "rules.jsonl"):
        ran = sesmail(f"routes export {bad}", code=2)
        assert ran.err.startswith(f"Error: {bad} cannot be written: ")


def test_a_hyphen_is_standard_output(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(cloud, PK="ROUTE#*", SK="RULE#v1", action="store", description=None)
    assert sesmail("routes export -").lines == [
        {"pattern": "*", "action": "store", "targets": [], "enabled": True, "description": ""}
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_rule_cannot_be_exported(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path
) -> None:
    put(cloud, PK="ROUTE#x@example.com", SK="RULE#v1", action="foward")
    file = tmp_path / "rules.jsonl"
    assert "x@example.com: unknown action" in sesmail(f"routes export {file}", code=1).err
    assert not file.exists()


def test_import_leaves_alone_what_somebody_else_changes_meanwhile(
    cloud: Cloud, sesmail: Sesmail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sesmail("routes add a@x.example store")
    sesmail("routes add b@x.example store")
    file = tmp_path / "rules.jsonl"
    file.write_text(
        '{"pattern": "a@x.example", "action": "drop"}\n{"pattern": "b@x.example", "action": "drop"}'
    )
    plan_as_it_is = rules.plan

    def plan(*given: Any) -> Any:
        steps = plan_as_it_is(*given)
        cloud.put_rule("a@x.example", "bounce")
        return steps

    monkeypatch.setattr(rules, "plan", plan)
    ran = sesmail(f"routes import {file} --yes", code=5)
    assert "a@x.example; import again" in ran.err
    assert {item["recipient"]: item["action"] for item in items(cloud)} == {
        "a@x.example": "bounce",
        "b@x.example": "drop",
    }


# -- test and check --------------------------------------------------------------------------------


def test_why_an_address_goes_where_it_goes(cloud: Cloud, sesmail: Sesmail) -> None:
    sesmail("routes add anna@example.com store --disabled")
    sesmail(f"routes add '*@example.com' forward-to-gmail {ANNA}")
    sesmail("routes add '*' bounce")
    counted = len(cloud.executions())
    answers = sesmail("routes test Anna+x@example.com x@other.example --json").lines
    assert answers[0] == {
        "address": "Anna+x@example.com",
        "action": "forward-to-gmail",
        "targets": [ANNA],
        "matched_rule": "*@example.com",
        "reason": "domain wildcard",
        "tried": [
            {"pattern": "anna+x@example.com", "found": "absent"},
            {"pattern": "anna@example.com", "found": "disabled"},
            {"pattern": "*@example.com", "found": "matches"},
            {"pattern": "*", "found": "not reached"},
        ],
    }
    assert answers[1]["action"] == "bounce"
    out = sesmail("routes test Anna+x@example.com x@other.example").out
    assert "domain wildcard" in out
    assert len(cloud.executions()) == counted


def test_a_malformed_rule_is_the_answer_no(cloud: Cloud, sesmail: Sesmail) -> None:
    put(cloud, PK="ROUTE#*", SK="RULE#v1", action="foward")
    ran = sesmail("routes test x@example.com", code=1)
    assert "unknown action 'foward'" in ran.out
    assert "parked" in ran.err
    assert sesmail("routes test ''", code=2).err


def test_check(cloud: Cloud, sesmail: Sesmail) -> None:
    ssm = cloud.client("ssm")
    for parameter in ssm.describe_parameters()["Parameters"]:
        if parameter["Name"].startswith("/ses-mail/test/gmail-token"):
            ssm.delete_parameter(Name=parameter["Name"])
    sesmail("routes add '*' bounce")
    assert "All is well." in sesmail("routes check").err
    sesmail("routes add known@example.com bounce")
    (note,) = sesmail("routes check --json").lines
    assert note == {
        "pattern": "known@example.com",
        "severity": "note",
        "problem": "redundant: * does the same",
        "advice": "keep it if that rule may change, or remove it",
    }
    cloud.put_rule("Typo@example.com", "drop")
    sesmail("routes add carl@example.com forward-to-gmail carl@gmail.com")
    found = {f["pattern"]: f for f in sesmail("routes check --json", code=1).lines}
    assert "looked up as typo@example.com" in found["Typo@example.com"]["problem"]
    assert "no credentials for carl@gmail.com" in found["carl@example.com"]["problem"]
    cloud.add_mailbox("carl@gmail.com")
    sesmail("routes remove Typo@example.com --yes")
    assert "redundant" in sesmail("routes check").out


def test_check_knows_the_receipt_rule(
    cloud: Cloud, sesmail: Sesmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    sesmail("routes add '*' bounce")
    sesmail("routes add x@elsewhere.example drop")
    assert sesmail("routes check").code == 0, "the embedded cloud takes mail for every domain"
    ses = cloud.client("ses")
    live = ses.describe_active_receipt_rule_set()
    (rule,) = live["Rules"]
    ses.create_receipt_rule_set(RuleSetName="narrow")
    try:
        ses.set_active_receipt_rule_set(RuleSetName="narrow")
        (note,) = sesmail("routes check --json").lines
        assert "no enabled rule ses-mail-test" in note["problem"]
        ses.create_receipt_rule(RuleSetName="narrow", Rule={**rule, "Recipients": ["example.com"]})
        (dead,) = sesmail("routes check --json", code=1).lines
        assert dead["problem"] == "dead: SES takes mail for example.com only"
    finally:
        ses.set_active_receipt_rule_set(RuleSetName=live["Metadata"]["Name"])


# -- the router ------------------------------------------------------------------------------------

LOCAL = st.sampled_from(
    ["anna", "Anna", "anna+x", "anna+X+y", "+x", "ben", '"a b"', '"a@b"', '"anna+x"', "ünal", "*"]
)
ODD = st.sampled_from(["postmaster", "@", "*"])
TARGET = st.sampled_from(
    [ANNA, [ANNA, BEN], ["Anna+x@gmail.com", ANNA], {ANNA, BEN}, "", [], "anna", 7, None, [7]]
)
GOOD = st.fixed_dictionaries(
    {"action": st.just("forward-to-gmail"), "target": st.just([ANNA, BEN])}
)
RULE = GOOD | st.fixed_dictionaries(
    {"action": st.sampled_from(["forward-to-gmail", "bounce", "store", "drop", "foward", None])},
    optional={"target": TARGET, "enabled": st.sampled_from([True, True, False, "true", 0])},
)


def rule_set(number: int) -> Any:
    """(rules, recipients) at domains that no other number has."""
    domains = [f"example{number}.com", f"bücher{number}.example"]
    domains += [domains[0].upper(), domains[1].encode("idna").decode()]
    address = st.builds("{}@{}".format, LOCAL, st.sampled_from(domains))
    pattern = address | address.map(str.lower) | st.sampled_from(domains).map("*@{}".format)
    return st.tuples(
        st.dictionaries(pattern, RULE, max_size=6),
        st.lists(address | ODD, min_size=1, max_size=3, unique=True),
    )


class Table:
    """The routing table, which holds only what it was last filled with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._held: set[str] = set()

    def fill(self, held: dict[str, dict[str, Any]]) -> None:
        gone = self._held - held.keys()
        key = {pattern: {"PK": f"ROUTE#{pattern}", "SK": "RULE#v1"} for pattern in {*gone, *held}}
        requests: list[Any] = [
            {"DeleteRequest": {"Key": tables.serialize(key[pattern])}} for pattern in gone
        ] + [
            {"PutRequest": {"Item": tables.serialize({**key[pattern], **rule})}}
            for pattern, rule in held.items()
        ]
        for start in range(0, len(requests), 25):  # the limit of BatchWriteItem
            part = requests[start : start + 25]
            clients.dynamodb().batch_write_item(RequestItems={self.name: part})
        self._held = set(held)


@pytest.fixture
def table(aws: "Aws", monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    monkeypatch.setenv("ROUTING_TABLE", aws.routing_table)
    return Table(aws.routing_table)


def test_it_agrees_with_the_router(
    aws: "Aws", table: Table, logs: "Logs", context: "LambdaContext", event: Any
) -> None:
    session = Session(aws.environment)
    seen: set[str] = set()

    # 1,000 sets of rules, four at a time: three requests each would take a minute.
    @settings(max_examples=250)
    @given(odd=st.dictionaries(ODD, RULE), sets=st.tuples(*map(rule_set, range(4))))
    def agree(odd: dict[str, Any], sets: tuple[tuple[dict[str, Any], list[str]], ...]) -> None:
        held = {pattern: rule for rules, _ in sets for pattern, rule in rules.items()} | odd
        recipients = [recipient for _, listed in sets for recipient in listed]
        table.fill(held)
        logs.clear()
        router.handler(event("router", verdict="none", recipients=recipients), context)
        decided = [
            (line["recipient"], line["action"], line["target"], line["matchedRule"], line["reason"])
            for line in logs.read("Routing decision")
        ]
        answers = explain(session, recipients)
        assert decided == [
            (a["address"], a["action"], ", ".join(a["targets"]), a["matched_rule"], a["reason"])
            for a in answers
        ]
        for answer in answers:
            found = {key["found"]: key["pattern"] for key in reversed(answer["tried"])}
            by = found.get("malformed" if answer["action"] == "park" else "matches", "none")
            assert by == answer["matched_rule"]
            seen.update(found, [answer["action"]])

    agree()
    assert seen == {
        *("forward-to-gmail", "bounce", "store", "drop", "park"),
        *("absent", "disabled", "malformed", "matches", "not reached"),
    }
