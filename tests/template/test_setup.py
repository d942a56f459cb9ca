"""What docs/setup.md says about deploying again fits the template and AWS's own models."""

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import boto3
import pytest
from awscli.clidriver import create_clidriver
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from tests.template.contract import ACCOUNT, REGION, Project
from tests.template.test_documentation import commands

ROOT = Path(__file__).parents[2]
IMPORT = yaml_parse((ROOT / "docs/import.yaml").read_text())
COMMANDS = [c for c in commands("docs/setup.md") if c.startswith("aws cloudformation")]


def to_import() -> list[dict[str, Any]]:
    (command,) = (c for c in COMMANDS if "create-change-set" in c)
    words = shlex.split(command)
    return list(json.loads(words[words.index("--resources-to-import") + 1]))


def test_every_retained_resource_but_the_rule_set_is_imported() -> None:
    # The next deployment joins the rule set by parameter, so that nothing hangs on its import.
    retained = {
        name
        for name, resource in Project(ROOT).resources.items()
        if resource.get("DeletionPolicy", "Delete") != "Delete"
    }
    assert retained == set(IMPORT["Resources"]) | {"InboundRuleSet"}
    assert [resource["LogicalResourceId"] for resource in to_import()] == list(IMPORT["Resources"])


def test_identifiers_are_the_template_s_names() -> None:
    project = Project(ROOT)
    assert ACCOUNT == "123456789012"
    for resource in to_import():
        name = resource["LogicalResourceId"]
        (identifier,) = resource["ResourceIdentifier"].items()
        assert identifier[1] == project.properties(name)[identifier[0]] == project.name(name)
        assert resource["ResourceType"] == project.resources[name]["Type"]


@pytest.mark.parametrize("name", IMPORT["Resources"])
def test_what_is_imported_is_what_is_deployed(name: str) -> None:
    # The deployment after it must find the same identity, keys and expiry, and may set the rest.
    imported, deployed = dict(IMPORT["Resources"][name]), Project(ROOT).resources[name]
    assert imported.pop("Properties").items() <= deployed["Properties"].items()
    assert imported == {key: value for key, value in deployed.items() if key != "Properties"}


def test_the_import_brings_neither_outputs_nor_transform() -> None:
    assert set(IMPORT) == {"AWSTemplateFormatVersion", "Description", "Parameters", "Resources"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one_that_the_aws_cli_takes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)[1:]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with mock_aws():
        client = boto3.client("cloudformation", region_name=REGION)
        if words[1] == "wait":
            assert words[2].replace("-", "_") in client.waiter_names
            return
        if words[1].startswith("describe"):
            client.create_stack(
                StackName="ses-mail-test",
                TemplateBody='{"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}',
            )
        else:
            # Checks all that would be sent against AWS's model, and sends nothing.
            words += ["--generate-cli-skeleton", "output"]
        assert create_clidriver().main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("environment", ["test", "prod"])
def test_deploying_no_change_is_no_failure(environment: str) -> None:
    deploy = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]["deploy"]
    assert deploy["parameters"]["fail_on_empty_changeset"] is False
