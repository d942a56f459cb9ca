"""`make install`, as an operator types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_make_install_puts_sesmail_where_the_documents_say(tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PREFIX", "PYTHONPATH")}
    subprocess.run(
        ["make", "install", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=inherited | {"HOME": str(tmp_path)},
        check=True,
        timeout=300,
    )
    said = subprocess.run(
        [tmp_path / ".local" / "bin" / "sesmail", "--help"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Operate ses-mail" in said.stdout
