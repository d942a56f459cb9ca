"""`aws` and `sesmail` without what takes longest, their imports: a process that has made them
forks for every command, which then runs the entry point that is installed.

Run as a file it serves one program; what `install` writes asks it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PROGRAMS = ("aws", "sesmail")

# Sent to the server: three file descriptors, and what a new process would be given.
_PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"!"], [0, 1, 2])
    words = [{name!r}, *{first!r}, *sys.argv[1:]]
    server.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or 70))
"""


def install(folder: Path, served: Path, first: Mapping[str, list[str]]) -> None:
    """Put the programs into a folder; `first` are arguments that go before the operator's."""
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(
            _PROGRAM.format(
                python=sys.executable,
                address=str(served / name),
                name=name,
                first=first.get(name, []),
            )
        )
        program.chmod(0o755)


@contextlib.contextmanager
def serving(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The programs' servers, with an environment that their imports may read."""
    command = [sys.executable, __file__]
    # Apart, since awscli brings a botocore of its own.
    servers = [
        subprocess.Popen([*command, name, str(folder / name)], env=dict(environment))
        for name in PROGRAMS
    ]
    try:
        while not all((folder / name).exists() for name in PROGRAMS):
            assert all(server.poll() is None for server in servers)
            time.sleep(0.05)
        yield
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _serve(name: str, address: str) -> None:
    before = set(os.environ)
    if name == "aws":
        from awscli.clidriver import main
    else:
        from cli.main import main
    # awscli says so where its data are.
    made = {variable: os.environ[variable] for variable in set(os.environ) - before}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen(16)
        os.rename(f"{address}.new", address)
        while True:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    _run(connection, main, made)


def _run(connection: socket.socket, main: Callable[[], object], made: Mapping[str, str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 70
    try:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        request = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        sys.argv, folder, environment = json.loads(request)
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment | made)
        code = int(main() or 0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(OSError):
            connection.sendall(str(code).encode())
        os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
