"""A rollback, followed as far as AWS: another release, and the operator's own values."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from tests.runbooks.blocks import blocks

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
BUCKET = "artifacts-of-a-rollback"
pytestmark = pytest.mark.slow


def section(document: str, name: str, number: int = 1) -> str:
    (found,) = (b.text for b in blocks(ROOT / document) if b.key == (name, number))
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a release v1.2.2, and a later commit whose samconfig.toml says otherwise."""
    root = tmp_path_factory.mktemp("project") / "ses-mail"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    commit = ("-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-qam")
    for words in (["init", "-q"], ["add", "."], [*commit, "Release"], ["tag", "v1.2.2"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    config = root / "samconfig.toml"
    config.write_text(config.read_text().replace("ses-mail-test", "ses-mail-later"))
    subprocess.run(["git", *commit, "Later"], cwd=root, check=True)
    return root


def run(project: Path, moto: str, text: str) -> str:
    """What a block prints whose `sam deploy` ends where only AWS could go on."""
    tools = project.parent / "bin"
    tools.mkdir(exist_ok=True)
    sam = tools / "sam"
    sam.write_text(
        "#!/bin/sh\n"
        # moto can't make the bucket of --resolve-s3, nor read a template from there.
        f'[ "$1" = deploy ] && set -- "$@" --no-resolve-s3 --s3-bucket {BUCKET} '
        "--no-confirm-changeset\n"
        f'exec "{BINARIES / "sam"}" "$@"\n'
    )
    sam.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SAM_"))}
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=project,
        env=inherited
        | {
            "PATH": f"{tools}:{BINARIES}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": moto,
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "SAM_CLI_TELEMETRY": "0",
            "SESMAIL_ENV": "test",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr


def overrides(output: str) -> dict[str, str]:
    """What `sam deploy` says that it passes on."""
    (said,) = re.findall(r"Parameter overrides +: (\{.*\})", output)
    return ast.literal_eval(said)  # type: ignore[no-any-return]


def test_deploying_and_rolling_back_keep_the_operators_values(project: Path, moto: str) -> None:
    boto3.client(
        "s3",
        endpoint_url=moto,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    ).create_bucket(Bucket=BUCKET)
    values = {
        "Environment": "test",
        "Domains": "example.com,example.org",
        "AlarmEmail": "you@example.com",
    }
    deployed = run(project, moto, section("docs/setup.md", "2. Deploy"))
    assert overrides(deployed) == values
    assert "ses-mail-later" in deployed
    rolled_back = run(project, moto, section("runbooks/OPERATIONS.md", "Roll back"))
    assert "Build Succeeded" in rolled_back
    assert overrides(rolled_back) == values
    assert "ses-mail-later" not in rolled_back, "it is the older release"


def test_without_values_nothing_is_deployed(project: Path, moto: str) -> None:
    (project / "parameters-test.yaml").unlink(missing_ok=True)
    said = run(project, moto, 'sam deploy --config-env "$SESMAIL_ENV"')
    assert "file://parameters-test.yaml was not found" in said
    assert "Initiating deployment" not in said


def test_git_ignores_them() -> None:
    names = [f"parameters-{environment}.yaml" for environment in ("test", "prod")]
    ignored = subprocess.run(
        ["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout.split() == names
