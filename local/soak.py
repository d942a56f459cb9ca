"""`make soak`: random emails through random faults; then heal, redrive, and account for each.

Exits 1 if an email was lost, delivered twice, misdelivered, changed or bounced for no reason, and
tells the email's id and history. The same seed gives the same emails, rules and fault schedule.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from rich.console import Console
from rich.table import Table

from cli.history import Story, tell
from local import faults as kinds
from local.account import (
    BODY_CANARY,
    CHECKS,
    HEADER_CANARY,
    Copy,
    Evidence,
    Letter,
    Problem,
    Report,
    account,
    hopeless,
    ledger,
)
from local.cloud import Cloud
from local.faults import STATE_MACHINE, Fault, Faults
from local.google import Message
from local.model import BOUNCE, DROP, FORWARD, STORE, Email, Rule

# Real seconds per second; a slow machine wants more of them.
FACTOR = 0.08
# The shortest lease, the bouncer's: its time-out of 60 s and 30 more. What an invocation is given
# at least stays under it, so that no attempt outlives its lease.
_LEASE = 90

DOMAINS = ("one.example", "two.example", "three.example")
REVOKED = "m5@gmail.example"
DLQS = ("InputDlq", "GmailForwarderDlq", "BouncerDlq")
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
# Real seconds for what has no reason to take long once everything is healed.
_PATIENCE = 300
_ID = re.compile(rb"^X-Soak: ([0-9a-z]{40})\r$", re.MULTILINE)
_DELIVERED_TO = re.compile(rb"(?:Delivered-To: [^\r\n]*\r\n)*")
_MIB = 1024 * 1024
MAILBOXES = tuple(f"m{number}@gmail.example" for number in range(8))

_RULES = [
    Rule("anna@one.example", FORWARD, ("m0@gmail.example",)),
    Rule("alias@one.example", FORWARD, ("M0+alias@gmail.example",)),
    Rule("ben@one.example", FORWARD, ("m1@gmail.example",)),
    Rule("team@one.example", FORWARD, ("m0@gmail.example", "m1@gmail.example", "m2@gmail.example")),
    Rule("revoked@one.example", FORWARD, (REVOKED,)),
    Rule("full@one.example", FORWARD, ("m4@gmail.example",)),
    Rule("edited@one.example", FORWARD, ("m6@gmail.example",)),
    Rule("leaver@one.example", FORWARD, ("m2@gmail.example", "m6@gmail.example")),
    Rule("gone@one.example", BOUNCE),
    Rule("former@one.example", BOUNCE),
    Rule("archive@one.example", STORE),
    Rule("junk@one.example", DROP),
    Rule("off@one.example", FORWARD, ("m7@gmail.example",), enabled=False),
    Rule("*@one.example", FORWARD, ("m3@gmail.example",)),
    Rule("broken@two.example", "froward", ("m4@gmail.example",)),
    Rule("*@two.example", BOUNCE),
]
_EDITS = [
    Rule("edited@one.example", FORWARD, ("m7@gmail.example",)),
    Rule("leaver@one.example", BOUNCE),
]
_MENDED = [Rule("broken@two.example", FORWARD, ("m4@gmail.example",))]
_RECIPIENTS = {
    "anna@one.example": 8,
    "Anna+News@One.Example": 3,
    "alias@one.example": 4,
    "ben@one.example": 8,
    "team@one.example": 5,
    "revoked@one.example": 4,
    "full@one.example": 2,
    "edited@one.example": 4,
    "leaver@one.example": 3,
    "gone@one.example": 7,
    "former@one.example": 5,
    "archive@one.example": 3,
    "junk@one.example": 3,
    "off@one.example": 3,
    "somebody@one.example": 3,
    "broken@two.example": 3,
    "nobody@two.example": 5,
    "unrouted@three.example": 2,
}


def versions() -> list[dict[str, Rule]]:
    """Every state of the routing table: at first, after each edit midway, and mended."""
    states = [{rule.pattern: rule for rule in _RULES}]
    for rule in (*_EDITS, *_MENDED):
        states.append({**states[-1], rule.pattern: rule})
    return states


# -- what is sent ----------------------------------------------------------------------------------


def make_emails(seed: int, count: int) -> list[Email]:
    """Random emails; the same for the same arguments."""
    chance = random.Random(seed)
    return [_make_email(chance, number) for number in range(count)]


def _make_email(chance: random.Random, number: int) -> Email:
    message_id = "".join(chance.choices(ALPHABET, k=40))
    sender = f"s{number}@elsewhere{number % 50}.example"
    special = chance.random()
    if special < 0.03:
        sender = ""
    elif special < 0.05:
        sender = f"mailer-daemon@elsewhere{number % 50}.example"
    elif special < 0.06:
        sender = "colleague@one.example"
    wanted = 1 if chance.random() < 0.6 else chance.choice((2, 2, 3, 4, 9))
    pool = list(_RECIPIENTS)
    recipients = tuple(
        dict.fromkeys(chance.choices(pool, weights=list(_RECIPIENTS.values()), k=wanted))
    )
    verdicts = dict.fromkeys(("spam", "virus", "spf", "dkim", "dmarc"), "PASS")
    policy = ""
    for name, share in (("spam", 0.05), ("virus", 0.04), ("spf", 0.05), ("dkim", 0.05)):
        if chance.random() < share:
            verdicts[name] = "FAIL"
    if chance.random() < 0.06:
        verdicts["dmarc"], policy = "FAIL", chance.choice(("none", "quarantine", "reject"))
    elif chance.random() < 0.1:
        verdicts["dmarc"] = "GRAY"
    harm, harmful = "", ""
    if chance.random() < 0.08:
        harm, harmful = chance.choice(
            (
                ("auto-submitted", "Auto-Submitted: auto-replied\r\n"),
                ("mailing-list", "List-Id: <list.elsewhere.example>\r\n"),
                ("bulk", "Precedence: Bulk\r\n"),
                ("report", "Content-Type: multipart/report; boundary=x\r\n"),
            )
        )
    loop = chance.random() < 0.02
    hop = "Received: from a.example by b.example; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    head = (
        f"{hop * (26 if loop else chance.randrange(4))}"
        f"From: <{sender or 'x@elsewhere.example'}>\r\n"
        f"Subject: soak {number}\r\nMessage-ID: <{number}@soak.example>\r\n{harmful}"
        f"X-Soak: {message_id}\r\nX-Canary: {HEADER_CANARY}{number}\r\n\r\n"
        f"{BODY_CANARY}{number}\r\n"
    )
    drawn = chance.random()
    size = chance.randrange(6000)
    if drawn > 0.99:
        size = chance.randrange(4 * _MIB, 6 * _MIB)
    elif drawn > 0.9:
        size = chance.randrange(_MIB)
    email = Email(
        number,
        message_id,
        sender,
        recipients,
        # Any bytes: 8-bit, NUL, lone CR and LF.
        head.encode() + chance.randbytes(size),
        verdicts,
        policy,
        harm,
        loop,
    )
    if verdicts["virus"] == "FAIL":
        return replace(email, released=chance.random() < 0.7)
    again = tuple(r for r in recipients if r.startswith(("ben@", "revoked@")))
    if again and not loop and chance.random() < 0.15:
        return replace(email, repeat=f"again{number}", repeated=again)
    return email


def make_faults(seed: int, emails: Sequence[Email]) -> list[Fault]:
    """What goes wrong: for some emails something lasting, for all of them something at times."""
    chance = random.Random(f"faults {seed}")

    def some(share: float, *locals_: str) -> frozenset[str]:
        return frozenset(
            e.message_id
            for e in emails
            if any(r.startswith(locals_) for r in e.recipients) and chance.random() < share
        )

    to_revoked = some(0.25, "revoked@")
    lasting = [
        Fault(kinds.ERROR, "dynamodb:BatchGetItem", by="*router*", keys=some(0.02, ""), whole=True),
        Fault(kinds.REJECT, "ses:SendBounce", keys=some(0.05, "gone@")),
        Fault(kinds.REJECT, "gmail:Start", keys=some(1, "full@")),
        Fault(kinds.ERROR, "sqs:SendMessage", by=STATE_MACHINE, keys=to_revoked),
        Fault(
            kinds.THROTTLE,
            "dynamodb:PutItem",
            by=STATE_MACHINE,
            keys=some(0.25, "revoked@") - to_revoked,
        ),
    ]
    quiet = [kinds.THROTTLE, kinds.ERROR, kinds.RESET_BEFORE, kinds.RESET_AFTER]
    waits = [kinds.TIMEOUT_BEFORE, kinds.TIMEOUT_AFTER, kinds.SLOW]
    deaths = [kinds.KILL_BEFORE, kinds.KILL_AFTER]
    functions = "ses-mail-*"
    passing = [
        Fault(kind, site, rate, functions, whole=whole)
        for site, often, seldom in (
            ("s3:GetObject", 0.012, 0.005),
            ("dynamodb:*", 0.006, 0.003),
            ("ssm:GetParameter", 0.02, 0.01),
            ("ses:SendBounce", 0.07, 0.07),
            ("sqs:SendMessage", 0.08, 0.04),
            ("sfn:*Execution*", 0.012, 0.004),
            ("oauth:Token", 0.03, 0.02),
            ("gmail:*", 0.012, 0.008),
        )
        for kind in quiet + waits + deaths
        for rate in [seldom if kind in deaths else often]
        # Half of them only once, so that the client library mends them by itself.
        for whole, rate in ((False, rate / 2), (True, rate / 2))
    ]
    passing += [
        Fault(kind, "gmail:Chunk", 0.03, functions) for kind in (kinds.RESET_MID, kinds.KILL_MID)
    ]
    passing.append(Fault(kinds.THROTTLE, "sfn:StartExecution", 0.03, functions, whole=True))
    passing += [
        Fault(kind, site, rate, STATE_MACHINE)
        for site, rate in (("lambda:Invoke", 0.012), ("sqs:*", 0.1), ("dynamodb:*", 0.1))
        for kind in quiet
    ]
    return [
        *lasting,
        *passing,
        Fault(kinds.ABORT, "states:Execution", 0.01),
        Fault(kinds.LOST, "events:Deliver", 0.35),
        Fault(kinds.DUPLICATE, "events:Deliver", 0.15),
        Fault(kinds.LOST, "sns:Deliver", 0.03),
        Fault(kinds.DUPLICATE, "sns:Deliver", 0.06),
        Fault(kinds.REORDER, "sqs:Order", 0.1),
        Fault(kinds.DUPLICATE, "sqs:Receive", 0.05),
        Fault(kinds.ERROR, "lambda:Starter", 0.05),
        Fault(kinds.RESET_AFTER, "lambda:Starter", 0.05),
    ]


def digest(seed: int, emails: Sequence[Email], faults: Sequence[Fault]) -> str:
    """Of everything that the seed decides: emails, rules, and the schedule of faults, which is a
    function of the seed and this list."""
    text = [str(seed), repr(versions()), *map(repr, emails)]
    text += [f"{f} {sorted(f.keys or ())}" for f in (replace(f, keys=None) for f in faults)]
    text += [" ".join(sorted(f.keys or ())) for f in faults]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


# -- the run ---------------------------------------------------------------------------------------


class Soak:
    """One run in one embedded cloud; `root` is the project, or a mutant of it."""

    def __init__(
        self,
        emails: Sequence[Email],
        faults: Faults,
        *,
        root: Path | None = None,
        factor: float = FACTOR,
        patience: float = 60.0,  # real seconds for what the faults' retries take
        console: Console | None = None,
    ) -> None:
        self.emails = {email.message_id: email for email in emails}
        self.faults = faults
        self._patience = patience
        self._console = console or Console(quiet=True)
        self._versions = versions()
        self._half = len(emails) // 2
        self.cloud = Cloud(
            root,
            time_factor=factor,
            timeout_floor=0.95 * _LEASE * factor,
            domains=DOMAINS,
            faults=faults,
        )
        self._chance = random.Random(f"run {faults.seed}")
        self.problems: list[Problem] = []
        self.ledger: Counter[str] = Counter()
        self.letters: Counter[tuple[str, str]] = Counter()
        self.copies = 0
        self._taken: list[Letter] = []
        self._garbage = ["no JSON", '{"mail": {}}', '["a list"]']
        self._missing = "".join(self._chance.choices(ALPHABET, k=40))
        self._ended = threading.Event()

    def run(self) -> None:
        """Send, suffer, heal, redrive, account; wants its cloud to run, and fills `problems`."""
        try:
            self._run()
        finally:
            self._ended.set()

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")

    def _run(self) -> None:
        for address in MAILBOXES:
            self.cloud.add_mailbox(address)
        self.cloud.google.revoke(REVOKED)
        self._put(self._versions[0].values())
        threading.Thread(target=self._tick_hourly, daemon=True).start()
        self.cloud.runtime.prewarm()
        emails = list(self.emails.values())
        self._send(emails[: self._half])
        self._put(_EDITS)
        self._odd_notifications()
        self._send(emails[self._half :])
        for email in emails:
            self._release_or_repeat(email)
        self.say("all sent; the faults go on until their retries are through")
        self._settle()
        self._heal()
        self._redrive()
        self._account()

    def _send(self, emails: Iterable[Email]) -> None:
        for email in emails:
            self.cloud.send(
                email.raw,
                email.sender,
                email.recipients,
                verdicts=email.verdicts,
                dmarc_policy=email.dmarc_policy or None,
                message_id=email.message_id,
            )
            # SES does not wait either, but a laptop's memory is no cloud's.
            while len(self.cloud._running()) > 200 or self._waiting() > 50:
                time.sleep(0.1)

    def _put(self, rules: Iterable[Rule]) -> None:
        for rule in rules:
            target: str | Sequence[str] = rule.targets
            if len(rule.targets) < 2:
                target = "".join(rule.targets)
            self.cloud.put_rule(rule.pattern, rule.action, target, rule.enabled)

    def _odd_notifications(self) -> None:
        for text in self._garbage:
            self._queue(text)
        notification = self.cloud.notification(next(iter(self.emails)))
        text = json.dumps(notification).replace(next(iter(self.emails)), self._missing)
        self.cloud.publish(text)

    def _release_or_repeat(self, email: Email) -> None:
        redrive: dict[str, Any] = {"attempt": 1, "recipients": list(email.recipients)}
        if email.released:
            redrive["ignoreVerdicts"] = True
        elif email.repeat:
            redrive |= {"recipients": list(email.repeated), "force": email.repeat}
        else:
            return
        notification = self.cloud.notification(email.message_id)
        self._queue(json.dumps({**notification, "redrive": redrive}))

    def _queue(self, body: str) -> None:
        self.cloud.client("sqs").send_message(
            QueueUrl=self.cloud.resource("InputQueue"), MessageBody=body
        )

    def _tick_hourly(self) -> None:
        while not self._ended.wait(3600 * self.cloud.factor):
            self.cloud.events.tick()

    def _settle(self) -> None:
        deadline = time.monotonic() + 2 * self._patience
        while self._waiting() and time.monotonic() < deadline:
            time.sleep(0.5)
        try:
            self.cloud.wait_idle(self._patience)
        except TimeoutError as error:
            self.say(f"healing before all retries ran out: {error}")

    def _waiting(self) -> int:
        return int(self.cloud.pipe.queue.approximate_number_of_messages)

    def _heal(self) -> None:
        for queue in DLQS:
            for letter in self.cloud.dead_letters(queue):
                error = letter.get("failure", {}).get("error", "undeliverable notification")
                self.letters[queue, error] += 1
        self.faults.heal()
        self.cloud.add_mailbox(REVOKED)
        self._put(_MENDED)
        self.say("healed: no more faults, rules and credentials mended")
        self.cloud.wait_idle(_PATIENCE)

    def _redrive(self) -> None:
        """Sweep, send every dead letter back, until only those are left that nobody can mend."""
        for round_ in range(1, 6):
            self.cloud.events.tick()
            self.cloud.wait_idle(_PATIENCE)
            letters = [letter for queue in DLQS for letter in self.cloud.dead_letters(queue)]
            if round_ > 1 and all(hopeless(self._missing, self._garbage, it) for it in letters):
                return
            self.say(f"redrive {round_}: {len(letters)} dead letters")
            for queue in DLQS:
                self._empty(queue)
            self.cloud.wait_idle(_PATIENCE)

    def _empty(self, queue: str) -> None:
        """Send a queue's letters back."""
        taken = self._take(queue)
        self._taken += [letter for letter, _ in taken]
        for _, body in taken:
            # Whoever redrives may be told twice, as by every queue.
            for _ in range(2 if self._chance.random() < 0.1 else 1):
                self._queue(body)

    def _take(self, queue: str) -> list[tuple[Letter, str]]:
        """The letters of a queue with their bodies as they are; they are gone from it then."""
        sqs, url = self.cloud.client("sqs"), self.cloud.resource(queue)
        taken = []
        while received := sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in received:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                given = message.get("MessageAttributes", {})
                attributes = {name: value["StringValue"] for name, value in given.items()}
                body = _parsed(message["Body"])
                letter = Letter(queue=queue, body=body, attributes=attributes)
                taken.append((letter, message["Body"]))
        return taken

    # -- the account -------------------------------------------------------------------------------

    def _account(self) -> None:
        self.say("accounting")
        seen = self._evidence()
        self.problems = account(seen)
        self.ledger = ledger(seen)
        self.copies = len(seen.copies)

    def _evidence(self) -> Evidence:
        left = [letter for queue in DLQS for letter, _ in self._take(queue)]
        return Evidence(
            emails=self.emails,
            rules=self._in_effect,
            domains=DOMAINS,
            copies=[
                self._copy(m, box) for box in MAILBOXES for m in self.cloud.google.messages(box)
            ],
            reports=[self._report(bounce) for bounce in self.cloud.bounces],
            stories=[self._story(execution) for execution in self.cloud.executions()],
            records=list(self._items("DeliveriesTable")),
            letters=[*self._taken, *left],
            left=left,
            lines=[
                {**line, "function": name}
                for name in self._functions()
                for line in self.cloud.logs(name)
            ],
            fired=self.fired,
            stored={email.message_id: self._is_stored(email) for email in self.emails.values()},
            written=lambda: self._written(left),
            secrets=set(self.cloud.google.secrets().values()),
            namespace=f"SESMail/{self.cloud.environment}",
            revoked=REVOKED,
            missing=self._missing,
            garbage=self._garbage,
            now=self.cloud.now(),
        )

    def _in_effect(self, email: Email) -> list[dict[str, Rule]]:
        """The rules that may have routed the email: a redrive routes it again."""
        return self._versions if email.number < self._half else self._versions[len(_EDITS) :]

    def _functions(self) -> list[str]:
        """Short names, such as `router`."""
        suffix = f"-{self.cloud.environment}"
        return [
            name.removeprefix("ses-mail-").removesuffix(suffix)
            for name in self.cloud.runtime.functions
        ]

    def _copy(self, message: Message, mailbox: str) -> Copy:
        raw = message.raw
        match = _ID.search(raw)
        message_id = match[1].decode() if match else "?"
        email = self.emails.get(message_id)
        lines = _DELIVERED_TO.match(raw)
        assert lines
        return Copy(
            message_id=message_id,
            mailbox=mailbox,
            id=message.id,
            named=tuple(re.findall(r"Delivered-To: (.*)\r\n", lines[0].decode())),
            same=email is not None and raw[lines.end() :] == email.raw,
            labels=frozenset(message.labels),
            options=message.query,
        )

    def _report(self, bounce: Mapping[str, Any]) -> Report:
        request = bounce["request"]
        root = re.search(r"Root=([^;]+)", bounce["trace"])
        return Report(
            message_id=bounce["messageId"],
            id=bounce["id"],
            to=bounce["to"],
            sender=bounce["sender"],
            reporting_mta=request.get("MessageDsn", {}).get("ReportingMta", ""),
            execution=self.cloud.runtime.callers.get(root[1], "") if root else "",
            items=request["BouncedRecipientInfoList"],
        )

    def _story(self, execution: Mapping[str, Any]) -> Story:
        """An execution; its history is kept in a file as well, for whoever looks for secrets."""
        arn = execution["executionArn"]
        # moto keeps no history of what was stopped.
        events = [] if execution["status"] == "ABORTED" else self.cloud.history(arn)
        self._histories.mkdir(exist_ok=True)
        text = json.dumps([execution, events], default=str)
        (self._histories / execution["name"]).write_text(text)
        return tell(execution, events)

    def _is_stored(self, email: Email) -> bool:
        stored = self.cloud.client("s3").get_object(
            Bucket=self.cloud.resource("EmailBucket"), Key=f"emails/{email.message_id}"
        )
        return bool(stored["Body"].read() == email.raw)

    def _items(self, table: str) -> Iterator[dict[str, Any]]:
        pages = self.cloud.client("dynamodb").get_paginator("scan")
        plain = TypeDeserializer().deserialize
        for page in pages.paginate(TableName=self.cloud.resource(table)):
            for item in page["Items"]:
                yield {name: plain(value) for name, value in item.items()}

    def _written(self, left: Iterable[Letter]) -> Iterator[tuple[str, str]]:
        """(where, text) of all logs, traces, histories, letters and items; without what may hold
        it: an unfinished upload's session, and the notification that SNS sends as SES made it."""
        logs = self.cloud.runtime.directory
        for path in (*sorted(logs.iterdir()), *sorted(self._histories.iterdir())):
            yield path.name, path.read_text(errors="replace")
        for document in self.cloud.traces.documents:
            yield "a trace", document
        for letter in (*self._taken, *left):
            if letter.failure:
                yield f"a letter in {letter.queue}", json.dumps(letter.body)
        for table in ("DeliveriesTable", "RoutingTable"):
            for item in self._items(table):
                if "upload" in item:
                    item["upload"] = {**item["upload"], "session": ""}
                yield f"{table} {item['PK']} {item['SK']}", json.dumps(item, default=str)

    @cached_property
    def fired(self) -> list[kinds.Fired]:
        """The faults that happened; asked when none happens any more."""
        return self.faults.fired()

    @property
    def _histories(self) -> Path:
        return self.cloud.runtime.directory.parent / "histories"

    def history(self, message_id: str) -> Iterator[str]:
        """What is known of an email, for whoever has to find out."""
        email = self.emails.get(message_id)
        if email:
            yield str(replace(email, raw=email.raw[:0]))
        for fired in self.fired:
            if fired.key == message_id:
                yield f"fault: {fired}"
        for execution in self.cloud.executions(message_id):
            yield (
                f"{execution['name']} {execution['status']} {execution.get('error', '')} "
                f"{json.dumps(execution['input'].get('redrive'))}"
            )
            if execution["status"] == "ABORTED":
                continue
            story = tell(execution, self.cloud.history(execution["executionArn"]))
            for task in story.tasks:
                for attempt in task.attempts:
                    if attempt.error:
                        yield f"  {task.state} {attempt.error} {attempt.cause[:150]}"
            for made in story.deliveries:
                yield f"  {made.action} {made.target} {made.recipients}: {made.outcome}"


def _parsed(text: str) -> dict[str, Any]:
    """A letter's body; {"body": text} if it is no JSON object."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        body = None
    return body if isinstance(body, dict) else {"body": text}


# -- the command -----------------------------------------------------------------------------------


# How often each kind must have fired in 1,000 emails; shorter runs owe their share of it.
_PER_THOUSAND = 20


def too_rare(emails: int, planned: Iterable[Fault], fired: Iterable[kinds.Fired]) -> dict[str, int]:
    """Planned kinds of faults that fired too seldom for the run to prove much, with how often."""
    counts = Counter(fault.kind for fault in fired)
    wanted = _PER_THOUSAND * min(emails, 1000) // 1000
    return {
        kind: counts[kind] for kind in sorted({f.kind for f in planned}) if counts[kind] < wanted
    }


def fault_table(planned: Iterable[Fault], fired: Iterable[kinds.Fired]) -> Table:
    """Kinds of faults that really happened by service; those that did not have a row too."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind in {fault.kind for fault in planned}:
        counts[kind] = Counter()
    for fault in fired:
        service = fault.site.partition(":")[0]
        counts[fault.kind][service] += 1
    services = sorted({service for row in counts.values() for service in row})
    table = Table(title="Faults that fired")
    table.add_column("kind", no_wrap=True)
    for name in (*services, "all"):
        table.add_column(name, justify="right")
    for kind, row in sorted(counts.items()):
        table.add_row(kind, *(str(row[s] or "") for s in services), str(row.total()))
    return table


def account_table(problems: Iterable[Problem]) -> Table:
    """A line for every check; 0 is good."""
    wrong = Counter(problem.kind for problem in problems)
    table = Table("check", "wrong", title="Account")
    table.columns[1].justify = "right"
    for name in CHECKS:
        table.add_row(name, f"[red]{wrong[name]}[/red]" if wrong[name] else "0")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emails", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", help="KIND@SITE=RATE, … instead of the usual ones")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    started = time.monotonic()
    emails = make_emails(options.seed, options.emails)
    try:
        own = kinds.parse(options.faults or "")
    except ValueError as mistake:
        parser.error(str(mistake))
    planned = own or make_faults(options.seed, emails)
    console.print(
        f"{options.emails} emails to {sum(len(e.recipients) for e in emails)} recipients, "
        f"{sum(len(e.raw) for e in emails) / _MIB:.0f} MiB, seed {options.seed}, "
        f"schedule {digest(options.seed, emails, planned)}"
    )
    faults = Faults(options.seed, planned)
    soak = Soak(emails, faults, console=console)
    with soak.cloud:
        soak.run()
        fired = soak.fired
        console.print(fault_table(planned, fired))
        letters = Table(
            "queue", "error", "letters", title="Dead letters when everything was healed"
        )
        for (queue, error), number in sorted(soak.letters.items()):
            letters.add_row(queue, error, str(number))
        console.print(letters)
        ledger = Table("what became of it", "recipients", title="Ledger")
        for name, number in sorted(soak.ledger.items()):
            ledger.add_row(name, str(number))
        console.print(ledger)
        console.print(account_table(soak.problems))
        for problem in soak.problems[:10]:
            console.print(f"[red]{problem.kind}[/red] {problem.message_id}: ", end="")
            console.print(problem.text, markup=False)
            for line in soak.history(problem.message_id):
                console.print(f"    {line}", markup=False)
    wrong = f"{len(soak.problems)} wrong in {len(CHECKS)} checks"
    console.print(f"{wrong}; {soak.copies} copies; {time.monotonic() - started:.0f} s")
    rare = {} if own else too_rare(options.emails, planned, fired)
    for kind, number in rare.items():
        console.print(f"[red]too few faults[/red]: {kind} fired {number} times")
    return 1 if soak.problems or rare else 0


if __name__ == "__main__":
    sys.exit(main())
