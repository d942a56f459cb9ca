"""The fenced command blocks of a Markdown document, and a terminal that runs them."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local.cloud import Cloud
from local.iam import REGION

from . import forked

_FENCE = re.compile(r"^( *)```")
_HEADING = re.compile(r"^#+ +(.*)$")
_MARK = re.compile(r"<!-- not run: (.*) -->")

# What a failed command prints, also one whose exit code the shell does not see: $(cat absent).
_TROUBLE = re.compile(
    r"^(Error:|Traceback|usage:|aws: |An error occurred|Unable to"
    r"|.*: (line \d+:|No such file|command not found|illegal option|invalid date))",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block; `number` counts those of its section from 1, `not_run` is the reason that
    a comment above it gives, `again` says that it does the same as the one right above it."""

    section: str
    number: int
    line: int
    text: str
    not_run: str = ""
    again: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.section, self.number

    def __str__(self) -> str:
        return f"{self.section} {self.number}"


def blocks(document: Path) -> list[Block]:
    """Every fenced block, those inside of lists too, without their indentation."""
    found: list[Block] = []
    section, not_run, again = "", "", False
    lines = iter(enumerate(document.read_text().splitlines(), 1))
    for number, line in lines:
        if fence := _FENCE.match(line):
            text = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                text.append(inner.removeprefix(fence[1]))
            count = sum(block.section == section for block in found) + 1
            found.append(Block(section, count, number, "\n".join(text) + "\n", not_run, again))
        elif heading := _HEADING.match(line):
            section = heading[1]
        if line.strip():
            again = bool(fence)
            mark = _MARK.search(line)
            not_run = mark[1] if mark else ""
    return found


@dataclass(frozen=True)
class Ran:
    """What a block printed, and the exit code of its last command, or of the first that failed."""

    code: int
    out: str
    err: str

    def check(self, code: int = 0) -> None:
        """Fail unless every command did what it was asked for."""
        assert self.code == code, self
        assert not _TROUBLE.search(self.err), self


class Terminal:
    """A shell as an operator has it, with `aws` and `sesmail` installed and a profile configured.

    AWS and Google are the embedded cloud. Every question is answered with yes.
    """

    def __init__(self, cloud: Cloud, folder: Path, programs: Path) -> None:
        self.folder = folder
        (folder / "config").write_text(f"[profile ses-mail]\nregion = {REGION}\n")
        (folder / "credentials").write_text(
            "[ses-mail]\naws_access_key_id = operator\naws_secret_access_key = local\n"
        )
        installed = Path(sys.executable).parent
        page = f"curl --silent --cacert {cloud.google.ca_file} --output page --location %s"
        # `aws sqs` of version 1 goes to AWS itself whatever AWS_ENDPOINT_URL says.
        first = {"aws": ["--endpoint-url", cloud.aws_url]}
        forked.install(folder / "bin", programs, first)
        self.environment = outside(cloud) | {
            "PATH": f"{folder}/bin:{installed}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "AWS_CONFIG_FILE": str(folder / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            # In the background, as a real one: it waits for the command that waits for it.
            "BROWSER": f"{page} &",
        }

    def run(self, text: str, variables: Mapping[str, str] | None = None) -> Ran:
        """Run a block with bash, which stops at the first command that fails."""
        keyboard, terminal = pty.openpty()
        os.write(keyboard, b"y\n" * 5)
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            contextlib.ExitStack() as cleanup,
        ):
            cleanup.callback(os.close, keyboard)
            process = subprocess.Popen(
                ["bash", "-e", "-o", "pipefail", "-c", text],
                cwd=self.folder,
                env={**self.environment, **(variables or {})},
                stdin=terminal,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
            os.close(terminal)
            cleanup.callback(_end, process)
            code = process.wait(timeout=120)
            for file in (out, err):
                file.seek(0)
            return Ran(code, out.read(), err.read())


def outside(cloud: Cloud) -> dict[str, str]:
    """What leads every program to the embedded cloud and its Google."""
    return {
        "LANG": "C.UTF-8",
        "COLUMNS": "200",
        "AWS_ENDPOINT_URL": cloud.aws_url,
        "HTTPS_PROXY": cloud.google.url,
        "REQUESTS_CA_BUNDLE": str(cloud.google.ca_file),
        "HTTPLIB2_CA_CERTS": str(cloud.google.ca_file),
    }


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
