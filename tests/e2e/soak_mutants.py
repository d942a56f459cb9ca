"""Shows that the soak would notice: each mutant of the product must make it fail.

    python -m tests.e2e.soak_mutants [name …]

A mutant is a copy of the project with one safeguard taken out. Each is put through a short soak
with the faults that the safeguard is for; the unchanged project passes all of them first.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from local import faults as kinds
from local.faults import STATE_MACHINE, Fault, Faults
from local.soak import Email, Soak, make_emails
from tests.mutants import copy_of_project

ROOT = Path(__file__).parents[2]
EMAILS = 40
SEED = 7
AT_ONCE = 2  # most of a soak is waiting for retries
FOUND = 3  # exit code; 1 is Python's for an exception


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`."""

    name: str
    file: str
    old: str
    new: str


def faults(emails: Sequence[Email]) -> list[Fault]:
    """What the safeguards are for, more often than in a full soak."""
    return [
        Fault(
            kinds.ERROR, "dynamodb:BatchGetItem", 1, "*router*", keys=ids(emails[:4]), whole=True
        ),
        # Not of those, or few would live until their retries are through.
        Fault(kinds.ABORT, "states:Execution", 0.08, keys=ids(emails[4:])),
        Fault(kinds.LOST, "events:Deliver", 0.5),
        Fault(kinds.THROTTLE, "sfn:StartExecution", 0.2, whole=True),
        # Answers that get lost: the step is run again although it had done its work.
        Fault(kinds.RESET_AFTER, "lambda:Invoke", 0.15, STATE_MACHINE),
        Fault(kinds.KILL_AFTER, "gmail:Chunk", 0.3, attempts=[0]),
        Fault(kinds.KILL_AFTER, "ses:SendBounce", 0.5, attempts=[0]),
    ]


def ids(emails: Sequence[Email]) -> list[str]:
    return [email.message_id for email in emails]


MUTANTS = [
    Mutant(
        "the condition of a claim",
        "functions/ses_mail/deliveries.py",
        "attribute_not_exists(PK) OR lease_token = :token OR",
        "attribute_not_exists(PK) OR lease_token <> :token OR",
    ),
    Mutant(
        "the Catch of Forward to Gmail",
        "statemachines/process_email.asl.yaml",
        "            - ErrorEquals: [States.ALL]\n"
        '              Comment: "Dead-lettered: the email\'s other deliveries go on."\n',
        "            - ErrorEquals: [NoSuchError]\n",
    ),
    Mutant(
        "the Catch of Fetch email",
        "statemachines/process_email.asl.yaml",
        "      - ErrorEquals: [States.ALL]\n"
        '        Comment: "Nothing was delivered yet: the whole email is one delivery to park."\n',
        "      - ErrorEquals: [NoSuchError]\n",
    ),
    Mutant(
        "the Catch of Look up routes",
        "statemachines/process_email.asl.yaml",
        "      - ErrorEquals: [States.ALL]\n"
        '        Comment: "A database error is never `no rule`: the whole email is one delivery '
        'to park."\n',
        "      - ErrorEquals: [NoSuchError]\n",
    ),
    Mutant(
        "the sweeper",
        "functions/sweeper.py",
        "    for arn in sweeper.unmarked(dead):\n",
        "    for arn in []:\n",
    ),
    Mutant(
        "partial batches",
        "functions/starter.py",
        '[{"itemIdentifier": identifier} for identifier in failed]',
        "[]",
    ),
    Mutant(
        "the copying of redrive in the workflow",
        "statemachines/process_email.asl.yaml",
        "$merge([$redrive, {",
        "$merge([{}, {",
    ),
    Mutant(
        "the copying of redrive in the sweeper",
        "functions/ses_mail/sweep.py",
        'redrive = {**old, "attempt"',
        'redrive = {"attempt"',
    ),
    Mutant(
        "the new name of a redriven dead execution",
        "functions/ses_mail/sweep.py",
        '        "redrive": redrive,\n',
        "",
    ),
    Mutant(
        "the session asked first",
        "functions/ses_mail/forward.py",
        "if stored and stored.etag == order.email.etag:",
        "if stored and not stored.etag:",
    ),
    Mutant(
        "the mark before a bounce",
        "functions/ses_mail/bounce.py",
        "            self.deliveries.mark_sending(claim, order.execution)\n",
        "            pass\n",
    ),
]


def emails() -> list[Email]:
    """Those of a full soak that matter most for the mutants, few and small."""
    made = [e for e in make_emails(SEED, 400) if len(e.raw) < 20_000]
    chosen = [e for e in made if e.released or e.repeat][:12]
    chosen += [e for e in made if e not in chosen][: EMAILS - len(chosen)]
    return sorted(chosen, key=lambda e: e.number)


def soak(root: Path) -> int:
    """One short soak in this process; FOUND if anything is wrong."""
    sent = emails()
    run = Soak(sent, Faults(SEED, faults(sent)), root=root, factor=0.05, patience=45)
    with run.cloud:
        run.run()
        for problem in run.problems[:3]:
            sys.stdout.write(f"    {problem.kind} {problem.message_id}: {problem.text[:200]}\n")
    return FOUND if run.problems else 0


def copy(mutant: Mutant, target: Path) -> None:
    """The project with one change."""
    copy_of_project(target)
    path = target / mutant.file
    text = path.read_text()
    if mutant.old not in text:
        raise SystemExit(f"{mutant.file} has no such text any more: {mutant.old}")
    path.write_text(text.replace(mutant.old, mutant.new))


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--soak"]:
        return soak(Path(arguments[1]))
    chosen = [mutant for mutant in MUTANTS if not arguments or mutant.name in arguments]
    if told("as it is", ROOT) != 0:
        return 1
    with ThreadPoolExecutor(AT_ONCE) as soaks:
        killed = sum(soaks.map(noticed, chosen))
    sys.stdout.write(f"{killed}/{len(chosen)} mutants killed\n")
    return 0 if killed == len(chosen) else 1


def noticed(mutant: Mutant) -> bool:
    """Whether the soak of a mutant fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy(mutant, Path(folder))
        return told(f"without {mutant.name}", Path(folder)) == FOUND


def told(what: str, root: Path) -> int:
    """Result of a soak in a process of its own: moto keeps its state per process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.soak_mutants", "--soak", root],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    result = {0: "passed", FOUND: "failed"}.get(done.returncode, "CRASHED")
    trouble = done.stderr[-2000:] if result == "CRASHED" else ""
    sys.stdout.write(f"{what}: the soak {result}\n{done.stdout}{trouble}")
    sys.stdout.flush()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
