"""What runbooks/OPERATIONS.md names exists, and it leaves out no alarm and no saved query."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import app

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "runbooks" / "OPERATIONS.md"
TEXT = RUNBOOK.read_text()
MONITORING = (ROOT / "monitoring.yaml").read_text()
SOURCES = [
    ROOT / "template.yaml",
    ROOT / "monitoring.yaml",
    ROOT / "samconfig.toml",
    *(ROOT / "statemachines").glob("*.yaml"),
    *(ROOT / "runbooks").glob("*.yaml"),
    *(ROOT / "functions").rglob("*.py"),
]

_NAME = re.compile(r"[\w./-]*(?:ses|SES|eventbridge)(?:[\w./-]|\{\w+\})*\{env\}[\w./-]*")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MADE_BY_THE_OPERATOR = {"ses-email-routing-{env}-restored"}
# Words in code type that are other people's, and where they come from.
ELSEWHERE = {
    "Received": "a header of every email",
    "StartMessageMoveTask": "a call of SQS that the page warns of",
}


def names(text: str) -> set[str]:
    """Names that hold the environment, however a file writes it."""
    for variable in ("${Environment}", "$SESMAIL_ENV"):
        text = text.replace(variable, "{env}")
    text = text.replace("${AWS::AccountId}", "{account}")
    return {found.rstrip(".") for found in _NAME.findall(text)}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(path: Path) -> set[str]:
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE)}


def alarms() -> Iterator[tuple[str, str, str]]:
    """Name, response time and section of every alarm."""
    for part in MONITORING.split("AlarmName: !Sub ")[1:]:
        name = part.split()[0].replace("${Environment}", "{env}")
        found = re.search(r"(?:Respond within ([\w ]+)\.|(Informational)).*#([\w-]+)", part)
        assert found, name
        yield name, found[1] or found[2].lower(), found[3]


def test_every_name_exists() -> None:
    known = set().union(*(names(path.read_text()) for path in SOURCES)) | MADE_BY_THE_OPERATOR
    mentioned = {name for name in names(TEXT) if not name.endswith("/")}
    assert len(mentioned) > 40
    assert mentioned - known == set()


def test_every_word_of_the_code_exists() -> None:
    """Parameters, outputs, error classes, metrics."""
    code = "".join(path.read_text() for path in SOURCES)
    words = {word for word in _INLINE.findall(TEXT) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", word)}
    assert len(words) > 20
    assert {w for w in words if not re.search(rf"\b{w}\b", code)} - set(ELSEWHERE) == set()


@pytest.mark.parametrize(("name", "respond", "section"), list(alarms()))
def test_every_alarm_has_its_section(name: str, respond: str, section: str) -> None:
    (row,) = re.findall(
        rf"^\| `{re.escape(name)}` \| (.*) \| (.*) \| \[.*\]\(#(.*)\) \|$", TEXT, re.MULTILINE
    )
    assert (row[0], row[2]) == (respond, section)
    (text,) = (
        part
        for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)
        if slug(part.split("\n")[0]) == section
    )
    asked = respond if respond == "informational" else f"respond within {respond}"
    # How long it lasts is compared with the alarm in tests/template/test_alarms.py.
    assert text.split("\n")[2].startswith(f"`{name}` · {asked} · OK again after {row[1]}")
    for heading in ("**Means**", "**At stake:**", "**Decide", "**Over when**"):
        assert heading in text.replace("\n", " "), heading
    assert "```bash" in text


def test_no_alarm_is_made_up() -> None:
    rows = re.findall(r"^\| `([^`]*-\{env\})` \| [^|]* \| [^|]* \| \[", TEXT, re.MULTILINE)
    assert sorted(rows) == sorted(name for name, *_ in alarms())


def test_every_saved_query_is_listed() -> None:
    saved = {
        name.replace("${Environment}", "{env}")
        for name in re.findall(r"Name: !Sub (ses-mail/\S+)", MONITORING)
    }
    assert len(saved) > 5
    assert set(re.findall(r"^\| `(ses-mail/[^`]*)` \|", TEXT, re.MULTILINE)) == saved


def test_every_widget_exists() -> None:
    named = {re.sub(r"\s+", " ", widget) for widget in re.findall(r'(?<!-)"([A-Z][^"]+)"', prose())}
    titles = set(re.findall(r'"title": "([^"]+)"', MONITORING))
    quoted = {"Testing", "Start DLQ redrive", "Delegation denied"}
    assert {widget for widget in named if widget not in titles} == quoted


def prose() -> str:
    return re.sub(r"^ *```.*?^ *```", "", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]*)\)", TEXT)
    assert len(links) > 40
    for link in links:
        if link.startswith("https://"):
            continue  # nobody can follow it from here
        file, _, anchor = link.partition("#")
        path = RUNBOOK.parent / file if file else RUNBOOK
        assert path.is_file(), link
        assert not anchor or anchor in headings(path), link


def test_every_command_in_a_sentence_exists() -> None:
    root = typer.main.get_command(app)
    for line in re.findall(r"`sesmail ([^`]+)`", prose().replace("\n", " ")):
        command: Any = root
        words = line.split()
        while hasattr(command, "commands") and words and words[0] != "COMMAND":
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {option for p in command.params for option in p.opts} | {"--help", "--json"}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_what_differs_from_the_former_runbook_is_what_the_design_says() -> None:
    """All of it and nothing else (design, "Changes to the seed runbook, all there are")."""
    text = (ROOT / "runbooks" / "OPERATIONS.md").read_text()
    section = text.partition("## What differs from the former runbook\n")[2]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    changed = {
        "redrive to `ses-gmail-forwarder`": "`ses-email-input-{env}`",
        "--projection-expression": "`#action` with an attribute name",
        "`Key=DocumentName`": "`Key=DocumentNamePrefix`",
        "`date -v-1H`": "seconds since 1970",
        "`aws logs tail`": "needs version 2 of the AWS CLI",
        "Terraform rollback": "`sam deploy`",
        "queue-age alarms": "`ses-mail-delivery-delayed-{env}`",
        "no rule at all bounces": "is stored, with an alarm",
    }
    assert len(rows) == len(changed)
    for former, here in changed.items():
        (row,) = (row for row in rows if former in row.split("|")[1])
        assert here in row.split("|")[2]
