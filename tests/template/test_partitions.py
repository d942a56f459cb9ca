"""The stack can be deployed to any of AWS's partitions: nothing says `arn:aws:`."""

import re
from pathlib import Path

import pytest
import yaml

from tests.template.contract import ASL

ROOT = Path(__file__).parents[2]
DEPLOYED = ["template.yaml", "monitoring.yaml", ASL, "docs/import.yaml"] + [
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "runbooks").glob("*.yaml"))
]


@pytest.mark.parametrize("file", DEPLOYED)
def test_no_arn_names_a_partition(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    assert [line for line in lines if re.search(r"\barn:aws[\w-]*:", line)] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "functions").rglob("*.py")), ids=lambda path: path.name
)
def test_no_function_names_a_partition(path: Path) -> None:
    assert not re.search(r"\barn:aws[\w-]*:", path.read_text())


def test_service_integrations_take_the_partition() -> None:
    # AWS documents them per partition: in China they are arn:aws-cn:states:::….
    integrations = re.findall(r"Resource: (\S+)", (ROOT / ASL).read_text())
    assert integrations
    assert {text.split(":states:::")[0] for text in integrations} == {"arn:${Partition}"}


@pytest.mark.parametrize("file", [ASL, *(f for f in DEPLOYED if f.startswith("runbooks/"))])
def test_yaml_1_1_and_1_2_read_the_same_keys(file: str) -> None:
    # y, n, yes, no, on and off are booleans to YAML 1.1, in keys too; PyYAML knows the long ones.
    unquoted = re.findall(r"^\s*(?:- )?(\w+):", (ROOT / file).read_text(), re.MULTILINE)
    booleans = {"y", "n", "yes", "no", "on", "off", "true", "false"}
    assert [key for key in unquoted if key.lower() in booleans] == []
    assert yaml.safe_load((ROOT / file).read_text())
