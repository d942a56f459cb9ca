"""Shows that the soak would notice: each mutant of the product must make it fail.

    python -m tests.e2e.soak_mutants [name …]

A mutant is a copy of the project with one safeguard taken out, or with a clever bug. Each is put
through a short soak, with the faults that the safeguards are for, and must fail the checks that are
about it: any other failure proves nothing. The unchanged project passes all of them first.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from local import faults as kinds
from local.faults import STATE_MACHINE, Fault, Faults
from local.model import BOUNCE as BOUNCED
from local.model import Email, expected
from local.soak import DOMAINS, Soak, make_emails, versions
from tests.mutants import copy_of_project

ROOT = Path(__file__).parents[2]
EMAILS = 60
SEED = 7
AT_ONCE = 2  # most of a soak is waiting for retries
FOUND = 3  # exit code; 1 is Python's for an exception


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`; `noticed_by` names checks of the soak's account, of which one
    must find it."""

    name: str
    file: str
    old: str
    new: str
    noticed_by: tuple[str, ...]


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


WORKFLOW = "statemachines/process_email.asl.yaml"
FORWARDER, BOUNCE = "functions/gmail_forwarder.py", "functions/ses_mail/bounce.py"
OBSERVE = "functions/ses_mail/observe.py"

SAFEGUARDS = [
    Mutant(
        "the condition of a claim",
        "functions/ses_mail/forward_records.py",
        "attribute_not_exists(PK) OR lease_token = :token OR",
        "attribute_not_exists(PK) OR lease_token <> :token OR",
        ("duplicated",),
    ),
    Mutant(
        "the Catch of Forward to Gmail",
        WORKFLOW,
        "            - ErrorEquals: [States.ALL]\n"
        '              Comment: "Dead-lettered: the email\'s other deliveries go on."\n',
        "            - ErrorEquals: [NoSuchError]\n",
        ("executions", "lost", "groundless dead letters"),
    ),
    Mutant(
        "the Catch of Fetch email",
        WORKFLOW,
        "      - ErrorEquals: [States.ALL]\n"
        '        Comment: "Nothing was delivered yet: the whole email is one delivery to park."\n',
        "      - ErrorEquals: [NoSuchError]\n",
        ("executions", "lost", "groundless dead letters"),
    ),
    Mutant(
        "the Catch of Look up routes",
        WORKFLOW,
        "      - ErrorEquals: [States.ALL]\n"
        '        Comment: "A database error is never `no rule`: the whole email is one delivery '
        'to park."\n',
        "      - ErrorEquals: [NoSuchError]\n",
        ("executions", "lost", "groundless dead letters"),
    ),
    Mutant(
        "the sweeper",
        "functions/sweeper.py",
        "    for arn in sweeper.unmarked(dead):\n",
        "    for arn in []:\n",
        ("lost",),
    ),
    Mutant(
        "partial batches",
        "functions/starter.py",
        '[{"itemIdentifier": identifier} for identifier in failed]',
        "[]",
        ("lost",),
    ),
    Mutant(
        "the copying of redrive in the workflow",
        WORKFLOW,
        "$merge([$states.context.Execution.Input.redrive, {",
        "$merge([{}, {",
        ("dead letters' form",),
    ),
    Mutant(
        "the copying of redrive in the sweeper",
        "functions/ses_mail/dead_letters.py",
        'return {**old, "attempt"',
        'return {"attempt"',
        ("dead letters' form", "lost"),
    ),
    Mutant(
        "the new name of a redriven dead execution",
        "functions/ses_mail/dead_letters.py",
        'old["attempt"] + 1',
        'old["attempt"]',
        ("dead letters' form",),
    ),
    Mutant(
        "the session asked first",
        "functions/ses_mail/forward.py",
        "gmail.progress(stored.session)",
        "(0, None)",
        ("duplicated",),
    ),
    Mutant(
        "the mark before a bounce",
        BOUNCE,
        "            self.records.mark_sending(claim, order.execution)\n",
        "            pass\n",
        ("bounces per email",),
    ),
]

BUGS = [
    Mutant(
        "a copy in the wrong mailbox",
        FORWARDER,
        'delivery["target"],\n',
        'delivery["target"].replace("m1@", "m0@"),\n',
        ("wrong mailbox",),
    ),
    Mutant(
        "the last byte of an upload lost",
        FORWARDER,
        'email["size"], email["etag"]',
        'email["size"] - 1, email["etag"]',
        ("changed bytes",),
    ),
    Mutant(
        "labels swapped",
        FORWARDER,
        'tuple(event["labels"])',
        '("INBOX", "UNREAD") if "SPAM" in event["labels"] else ("SPAM",)',
        ("labels and import options",),
    ),
    Mutant(
        "a bounce that names only its first recipient",
        BOUNCE,
        "            for recipient in recipients\n",
        "            for recipient in recipients[:1]\n",
        ("bounce names all recipients",),
    ),
    Mutant(
        "one bounce per recipient",
        BOUNCE,
        "answer = self.ses.send_bounce(**bounce_request(order, recipients))",
        "answer = [self.ses.send_bounce(**bounce_request(order, [r])) for r in recipients][-1]",
        ("bounces per email",),
    ),
    Mutant(
        "a fifth of all forwards dead-lettered for no reason",
        FORWARDER,
        "    table, days = ",
        "    from ses_mail.errors import GmailRejectedError\n"
        '    first = order.execution.endswith(f":{order.message_id}")\n'
        "    if first and sum(order.message_id.encode()) % 5 == 0:\n"
        '        raise GmailRejectedError("for no reason", "none")\n'
        "    table, days = ",
        ("groundless dead letters",),
    ),
    Mutant(
        "a bounce from another of our domains",
        BOUNCE,
        'f"mailer-daemon@{domain}"',
        '"mailer-daemon@three.example"',
        ("bounce sender and addressee",),
    ),
    Mutant(
        "a bounce with the wrong status",
        BOUNCE,
        '"Status": "5.1.1"',
        '"Status": "5.2.2"',
        ("bounce status",),
    ),
    Mutant(
        "a stranger in Final-Recipient",
        BOUNCE,
        '"FinalRecipient": recipient',
        '"FinalRecipient": "stranger@one.example"',
        ("Final-Recipient",),
    ),
    Mutant(
        "Delivered-To for the first recipient only",
        "functions/ses_mail/forward.py",
        "for recipient in recipients).encode()",
        "for recipient in recipients[:1]).encode()",
        ("Delivered-To lines",),
    ),
    Mutant(
        "the session in the log",
        "functions/ses_mail/gmail.py",
        '        headers = {"Content-Range": ',
        '        print(session)\n        headers = {"Content-Range": ',
        ("secrets",),
    ),
    Mutant(
        "the token in the log",
        "functions/ses_mail/gmail.py",
        '        headers = {"Content-Range": ',
        '        print(self._credentials.google.token)\n        headers = {"Content-Range": ',
        ("secrets",),
    ),
    Mutant(
        "no line of routing decisions",
        OBSERVE,
        '    logger.info(\n        "Routing decision"',
        '    logger.debug(\n        "Routing decision"',
        ("routing decisions",),
    ),
    Mutant(
        "no line of action results",
        OBSERVE,
        '    logger.info(\n        "Action result"',
        '    logger.debug(\n        "Action result"',
        ("action results",),
    ),
    Mutant(
        "no metrics",
        OBSERVE,
        "    metrics.add_metric(name, MetricUnit.Count, value)\n",
        "    pass\n",
        ("metrics",),
    ),
]
MUTANTS = [*SAFEGUARDS, *BUGS]


def bounced(email: Email) -> list[str]:
    """The recipients that get a bounce, by the rules at first."""
    return [
        effect.recipient
        for recipient in email.recipients
        for effect in expected(email, recipient, versions()[0], DOMAINS)
        if effect.kind == BOUNCED
    ]


def emails() -> list[Email]:
    """Those of a full soak that matter most for the mutants, few and small."""
    made = [e for e in make_emails(SEED, 400) if len(e.raw) < 20_000]
    chosen = [e for e in made if e.released or e.repeat][:12]
    # One bounce for several recipients.
    several = [e for e in made if len(bounced(e)) > 1 and e not in chosen]
    chosen += several[:10]
    chosen += [e for e in made if e not in chosen][: EMAILS - len(chosen)]
    return sorted(chosen, key=lambda e: e.number)


def soak(root: Path) -> int:
    """One short soak in this process; FOUND if anything is wrong, and every problem told."""
    sent = emails()
    run = Soak(sent, Faults(SEED, faults(sent)), root=root, factor=0.05, patience=45)
    with run.cloud:
        run.run()
    for problem in run.problems:
        text = " ".join(problem.text.split())[:200]
        sys.stdout.write(f"{problem.kind}\t{problem.message_id}: {text}\n")
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
    if problems(ROOT):
        sys.stdout.write("the soak of the unchanged project fails\n")
        return 1
    with ThreadPoolExecutor(AT_ONCE) as soaks:
        killed = sum(soaks.map(noticed, chosen))
    sys.stdout.write(f"{killed}/{len(chosen)} mutants killed\n")
    return 0 if killed == len(chosen) else 1


def noticed(mutant: Mutant) -> bool:
    """Whether a check that is about the mutant finds it."""
    with tempfile.TemporaryDirectory() as folder:
        copy(mutant, Path(folder))
        found = problems(Path(folder))
    counts = Counter(kind for kind, _ in found)
    right = [text for kind, text in found if kind in mutant.noticed_by]
    result = "noticed" if right else "NOT NOTICED for its own reason"
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing is wrong"
    sys.stdout.write(f"{mutant.name}: {result} ({told})\n    {(right or [''])[0]}\n")
    sys.stdout.flush()
    return bool(right)


def problems(root: Path) -> list[tuple[str, str]]:
    """(check, text) of a soak in a process of its own: moto keeps its state per process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.soak_mutants", "--soak", root],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, FOUND):
        return [("crashed", done.stderr[-2000:])]
    pairs = [line.partition("\t") for line in done.stdout.splitlines()]
    return [(kind, text) for kind, tab, text in pairs if tab]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
