"""`sam build` on a machine that has Python 3.11 and no 3.13."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).parents[2]
BUILD = ".aws-sam/build"
MIB = 1024 * 1024

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH whose only Python is the one that runs the tests, with nothing but its pip."""
    tools = tmp_path_factory.mktemp("bin")
    for tool in ("make", "sh", "rm", "find", "echo"):
        found = shutil.which(tool)
        assert found, tool
        (tools / tool).symlink_to(found)
    python = tools / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    # sam looks for the runtime's own interpreter and must do without.
    (tools / "python").symlink_to(python)
    return str(tools)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, path: str) -> Path:
    """A copy of the project, built twice: the second build takes the layers from the cache."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("functions", "layers", "statemachines", "runbooks"):
        shutil.copytree(ROOT / folder, root / folder)
    for file in ("template.yaml", "monitoring.yaml", "samconfig.toml"):
        shutil.copy(ROOT / file, root)
    # What an editor or a test run leaves behind must not be shipped.
    (root / "functions/ses_mail/__pycache__").mkdir(exist_ok=True)
    (root / "functions/ses_mail/__pycache__/old.cpython-311.pyc").write_bytes(b"")
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-m", "samcli", "build"],
            cwd=root,
            env=os.environ
            | {"PATH": path, "SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "eu-west-1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "Build Succeeded" in ran.stdout + ran.stderr
    assert "Valid cache found" in ran.stdout + ran.stderr
    return root / BUILD


def files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "name",
    ["Starter", "Fetcher", "Router", "GmailForwarder", "Bouncer", "Sweeper", "TokenMonitor"],
)
def test_function_holds_only_our_code(built: Path, name: str) -> None:
    ours = {name for name in files(ROOT / "functions") if name.endswith((".py", "py.typed"))}
    assert files(built / f"{name}Function") == ours


def test_layers_are_for_lambda(built: Path) -> None:
    natives = [f for layer in ("Base", "Gmail") for f in (built / f"{layer}Layer").rglob("*.so")]
    assert natives
    assert all(
        ".cpython-313-x86_64-linux-gnu." in native.name or ".abi3." in native.name
        for native in natives
    )


def test_gmail_layer_describes_gmail_only(built: Path) -> None:
    documents = built / "GmailLayer/python/googleapiclient/discovery_cache/documents"
    assert files(documents) == {"gmail.v1.json"}


def test_sizes(built: Path) -> None:
    # Unpacked, all layers and the code may have 250 MB; cold starts want much less.
    assert size(built / "BaseLayer") < 15 * MIB
    assert size(built / "GmailLayer") < 40 * MIB
    assert size(built / "StarterFunction") < MIB


def test_layers_bring_nothing_that_the_runtime_has(built: Path) -> None:
    for layer in ("Base", "Gmail"):
        assert not (built / f"{layer}Layer/python/botocore").exists()
        assert not (built / f"{layer}Layer/python/boto3").exists()


def test_built_template_still_has_all_functions(built: Path) -> None:
    text = (built / "template.yaml").read_text()
    assert text.count("Type: AWS::Serverless::Function") == 7


@pytest.mark.parametrize("document", ["dlq_redrive", "queue_health_check"])
def test_built_template_still_includes_the_documents(built: Path, document: str) -> None:
    # `sam deploy` uploads what the path, written anew by the build, leads to.
    text = (built / "template.yaml").read_text()
    (location,) = re.findall(rf"Location: (\S+{document}.yaml)", text)
    assert (built / location).read_text() == (ROOT / f"runbooks/{document}.yaml").read_text()


def test_the_nested_stack_is_built_too(built: Path) -> None:
    outer = yaml_parse((built / "template.yaml").read_text())
    nested = built / outer["Resources"]["Monitoring"]["Properties"]["TemplateURL"]
    assert yaml_parse(nested.read_text()) == yaml_parse((ROOT / "monitoring.yaml").read_text())


@pytest.mark.parametrize("layer", ["base", "gmail"])
def test_requirements_are_exact(layer: str) -> None:
    lines = (ROOT / f"layers/{layer}/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)


def test_code_imports_with_the_layers_alone(tmp_path: Path, path: str) -> None:
    """Every handler starts on the layers and boto3, without anything else that is installed."""
    boto3 = tmp_path / "runtime"
    boto3.mkdir()
    site = Path(yaml.__file__).parents[1]
    for package in ("boto3", "botocore", "s3transfer", "dateutil", "jmespath", "six.py", "urllib3"):
        (boto3 / package).symlink_to(site / package)
    for layer, target in (("base", "BaseLayer"), ("gmail", "GmailLayer")):
        subprocess.run(
            [
                "make",
                "-s",
                "-C",
                ROOT / f"layers/{layer}",
                f"build-{target}",
                "PIP_FLAGS=",
                f"ARTIFACTS_DIR={tmp_path / layer}",
            ],
            env=os.environ | {"PATH": path},
            check=True,
            capture_output=True,
        )
    probe = """
import sys
base, gmail, runtime, functions = sys.argv[1:]
sys.path += [functions, base, runtime]
import starter, fetcher, router, bouncer, sweeper
assert "googleapiclient" not in sys.modules
sys.path.append(gmail)
import gmail_forwarder, token_monitor
from google.oauth2 import credentials, service_account
from googleapiclient.discovery import build
build("gmail", "v1", static_discovery=True, credentials=credentials.Credentials("token"))
print("ok")
"""
    variables = {
        "AWS_DEFAULT_REGION": "eu-west-1",
        "POWERTOOLS_SERVICE_NAME": "probe",
        "POWERTOOLS_METRICS_NAMESPACE": "probe",
    }
    ran = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            probe,
            tmp_path / "base/python",
            tmp_path / "gmail/python",
            boto3,
            ROOT / "functions",
        ],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "ok\n", ran.stderr
