"""Every command that the documents show is run by a test, or it says here why it cannot be."""

import re
import shlex
from pathlib import Path

import pytest

from tests.corpus import must_bounce, must_not_bounce

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "docs/setup.md", "docs/scaling.md"),
    *("docs/decisions.md", "docs/architecture.md"),
]

# Start of a command → the test that runs it, or why none can.
COMMANDS = {
    "make demo": "tests/e2e/test_demo.py",
    "make local": "tests/e2e/test_local.py",
    "make test": "it is what runs this test",
    "make quick": "`make test` runs all that it runs, and this test with it",
    "sam build": "tests/template/test_build.py",
    "cat > parameters-test.yaml": "tests/template/test_rollback.py",
    "sam deploy": "needs an AWS account; tests/template/test_rollback.py runs it up to that",
    "sam local invoke": "needs Docker; tests/e2e/test_local.py runs each function as it would",
    "aws ses set-active-receipt-rule-set": "needs an AWS account, whose state it is",
    "make install": "tests/e2e/test_install.py",
    "sesmail": "tests/commands/test_documents.py",
    "aws ssm put-parameter": "tests/e2e/test_local.py",
    "aws cloudformation": "tests/template/test_setup.py",
    "aws s3 ls": "needs an AWS account",
    "aws s3 rb": "needs an AWS account",
    "aws dynamodb put-item": "tests/e2e/test_local.py",
}


def commands(document: str) -> list[str]:
    """The commands of all ```bash blocks, continued lines joined."""
    text = (ROOT / document).read_text()
    found: list[str] = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        command = ""
        for line in block.replace("\\\n", " ").splitlines():
            command += ("\n" if command else "") + line
            # A here-document, or a quoted value, may go over several lines.
            here = re.search(r"<<'(\w+)'", command)
            open_here = here and not command.endswith(f"\n{here[1]}")
            if not open_here and command.count("'") % 2 == 0 and command.count('"') % 2 == 0:
                found += [command] if command.strip() else []
                command = ""
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_accounted_for(document: str) -> None:
    unknown = [c for c in commands(document) if not c.startswith(tuple(COMMANDS))]
    assert unknown == []


def test_no_account_is_of_a_command_that_is_gone() -> None:
    shown = [command for document in DOCUMENTS for command in commands(document)]
    assert [start for start in COMMANDS if not any(c.startswith(start) for c in shown)] == []


def test_the_named_tests_exist() -> None:
    for reason in COMMANDS.values():
        if reason.startswith("tests/"):
            assert (ROOT / reason).is_file()


@pytest.mark.parametrize("document", [*DOCUMENTS, "local/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), target


def test_sample_events_named_in_commands_exist() -> None:
    for command in commands("README.md"):
        words = shlex.split(command)
        if "--event" in words:
            assert (ROOT / words[words.index("--event") + 1]).is_file()


def test_the_readme_counts_the_corpora_right() -> None:
    said = re.search(r"(\d+) emails that must not be bounced, (\d+) that must", README)
    assert said
    assert [int(n) for n in said.groups()] == [len(must_not_bounce.CORPUS), len(must_bounce.CORPUS)]


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
DOMAIN = ROOT / "functions" / "ses_mail"


def test_the_map_has_every_room_of_the_domain_once() -> None:
    rows = re.findall(r"^\| ((?:`\w+\.py`(?:, )?)+) \|", ARCHITECTURE, re.MULTILINE)
    mapped = [file for row in rows for file in re.findall(r"`(\w+\.py)`", row)]
    assert sorted(mapped) == sorted(p.name for p in DOMAIN.glob("*.py") if p.name != "__init__.py")


def test_the_walks_pass_only_rooms_that_exist() -> None:
    walks = ARCHITECTURE[ARCHITECTURE.index("## Three walks") :]
    code = "".join(p.read_text() for p in [*DOMAIN.glob("*.py"), *(ROOT / "cli").glob("*.py")])
    machine = (ROOT / "statemachines" / "process_email.asl.yaml").read_text()
    for word in re.findall(r"`([^`]+)`", walks):
        if "/" in word or word.endswith((".py", ".yaml")):
            assert (ROOT / word).exists() or (DOMAIN / word).exists(), word
        elif re.fullmatch(r"(\w+\.)?[a-z_]+", word) or re.fullmatch(r"[A-Z]\w+\.\w+", word):
            name = word.rpartition(".")[2]
            assert re.search(rf"(def|class) {name}\b|\b{name}\b", code), word
        elif re.fullmatch(r"[A-Z][a-z]+( [A-Za-z]+)*\??", word):
            assert f"{word}:" in machine or word in ("Catch", "Received"), word
