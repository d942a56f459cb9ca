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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from local import faults as kinds
from local import model
from local.cloud import Cloud
from local.faults import STATE_MACHINE, Fault, Faults
from local.google import Message
from local.model import BOUNCE, DROP, FORWARD, STORE, SUPPRESS, Effect, Email, Rule

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
    """The routing table at first, after the edit midway, and after everything was mended."""
    first = {rule.pattern: rule for rule in _RULES}
    edited = {**first, **{rule.pattern: rule for rule in _EDITS}}
    return [first, edited, {**edited, **{rule.pattern: rule for rule in _MENDED}}]


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
        f"X-Soak: {message_id}\r\n\r\n"
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


@dataclass(frozen=True)
class Problem:
    """What is wrong with an email; `kind` is counted."""

    kind: str
    message_id: str
    text: str


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
            if round_ > 1 and not any(self._mendable(body) for _, body in self._dead()):
                return
            self.say(f"redrive {round_}: {sum(1 for _ in self._dead())} dead letters")
            for queue in DLQS:
                self._empty(queue)
            self.cloud.wait_idle(_PATIENCE)

    def _dead(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for queue in DLQS:
            for letter in self.cloud.dead_letters(queue):
                yield queue, letter

    def _mendable(self, letter: Mapping[str, Any]) -> bool:
        if "original" in letter:
            return _original(letter) not in self._garbage
        return bool(letter["mail"]["messageId"] != self._missing)

    def _empty(self, queue: str) -> None:
        sqs = self.cloud.client("sqs")
        url = self.cloud.resource(queue)
        taken = []
        while received := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in received:
                taken.append(message["Body"])
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        for body in taken:
            # Whoever redrives may be told twice, as by every queue.
            for _ in range(2 if self._chance.random() < 0.1 else 1):
                self._queue(body)

    # -- the account -------------------------------------------------------------------------------

    def _account(self) -> None:
        self.say("accounting")
        copies = self._copies()
        bounces = self._bounces()
        ended = self._ended_as()
        records = self._suppressed()
        for email in self.emails.values():
            self._account_email(email, copies, bounces, ended, records)
        self._account_executions()
        self._account_letters()

    def _problem(self, kind: str, message_id: str, text: str) -> None:
        self.problems.append(Problem(kind, message_id, text))

    def _copies(self) -> dict[tuple[str, str], list[Message]]:
        """(message id, mailbox) → copies, each checked byte by byte."""
        found: dict[tuple[str, str], list[Message]] = defaultdict(list)
        for address in MAILBOXES:
            for message in self.cloud.google.messages(address):
                self.copies += 1
                raw = message.raw
                match = _ID.search(raw)
                email = self.emails.get(match[1].decode()) if match else None
                if email is None:
                    self._problem("changed", "?", f"{address} holds an unknown email {raw[:200]!r}")
                    continue
                found[email.message_id, address].append(message)
                lines = _DELIVERED_TO.match(raw)
                assert lines
                if raw[lines.end() :] != email.raw:
                    self._problem("changed", email.message_id, f"in {address}")
                named = re.findall(r"Delivered-To: (.*)\r\n", lines[0].decode())
                leading = {
                    effect.recipient
                    for effect in self._possible(email)
                    if (effect.kind, effect.where) == (FORWARD, address)
                }
                if not named or not set(named) <= leading or len(set(named)) < len(named):
                    self._problem("misdelivered", email.message_id, f"{address} got it for {named}")
                if set(message.labels) != model.labels(email):
                    self._problem("misdelivered", email.message_id, f"labels {message.labels}")
        return found

    def _possible(self, email: Email) -> set[Effect]:
        return {
            effect
            for recipient in email.recipients
            for rules in self._in_effect(email)
            for effect in model.expected(email, recipient, rules, DOMAINS)
        } | {
            # Before somebody released it.
            Effect(DROP, recipient)
            for recipient in (email.recipients if email.released else ())
        }

    def _in_effect(self, email: Email) -> list[dict[str, Rule]]:
        """The rules that may have routed the email: a redrive routes it again."""
        return self._versions if email.number < self._half else self._versions[1:]

    def _bounces(self) -> Counter[tuple[str, str]]:
        sent: Counter[tuple[str, str]] = Counter()
        for bounce in self.cloud.bounces:
            email = self.emails[bounce["messageId"]]
            if bounce["to"] != email.sender or not bounce["sender"].startswith("mailer-daemon@"):
                self._problem("misbounced", email.message_id, str(bounce))
            for recipient in bounce["recipients"]:
                sent[email.message_id, recipient] += 1
        return sent

    def _ended_as(self) -> set[tuple[str, str, str]]:
        """(message id, recipient, outcome) as the executions tell it."""
        ended = set()
        for execution in self.cloud.executions():
            message_id = execution["input"]["mail"]["messageId"]
            output = execution.get("output")
            found: list[dict[str, Any]] = []
            if output:
                found = output["outcomes"]
            elif execution["status"] == "FAILED":
                found = self._outcomes(execution["executionArn"])
            for outcome in found:
                for recipient in outcome["recipients"]:
                    ended.add((message_id, recipient, outcome["outcome"]))
        return ended

    def _outcomes(self, arn: str) -> list[dict[str, Any]]:
        for event in self.cloud.history(arn):
            exited = event.get("stateExitedEventDetails")
            if exited and exited["name"] == "For each delivery":
                outcomes: list[dict[str, Any]] = json.loads(exited["output"])["outcomes"]
                return outcomes
        return []

    def _suppressed(self) -> dict[tuple[str, str], str]:
        """(message id, recipient) → reason, from the deliveries table."""
        pages = self.cloud.client("dynamodb").get_paginator("scan")
        return {
            (item["PK"]["S"].removeprefix("EMAIL#"), item["SK"]["S"].removeprefix("BOUNCE#")): item[
                "reason"
            ]["S"]
            for page in pages.paginate(TableName=self.cloud.resource("DeliveriesTable"))
            for item in page["Items"]
            if item.get("delivery_state", {}).get("S") == "suppressed"
        }

    def _account_email(
        self,
        email: Email,
        copies: Mapping[tuple[str, str], Sequence[Message]],
        bounces: Mapping[tuple[str, str], int],
        ended: set[tuple[str, str, str]],
        suppressed: Mapping[tuple[str, str], str],
    ) -> None:
        stored = self.cloud.client("s3").get_object(
            Bucket=self.cloud.resource("EmailBucket"), Key=f"emails/{email.message_id}"
        )
        if stored["Body"].read() != email.raw:
            self._problem("changed", email.message_id, "in the bucket")
        happened: set[Effect] = set()
        for address in MAILBOXES:
            number = len(copies.get((email.message_id, address), ()))
            if number:
                happened |= {
                    effect
                    for effect in self._possible(email)
                    if (effect.kind, effect.where) == (FORWARD, address)
                }
            self._account_copies(email, address, number)
        for recipient in email.recipients:
            key = (email.message_id, recipient)
            reason = suppressed.get(key, "")
            if bounces.get(key, 0) > 1:
                self._problem("bounced twice", email.message_id, recipient)
            doubtful = reason == "maybe-sent" and model.may_have_bounced(
                email.message_id, recipient, self._fired()
            )
            if bounces.get(key) or doubtful:
                happened.add(Effect(BOUNCE, recipient))
            elif reason:
                happened.add(Effect(SUPPRESS, recipient, reason))
            for kind, outcome in ((STORE, "stored"), (DROP, "dropped")):
                if (email.message_id, recipient, outcome) in ended:
                    happened.add(Effect(kind, recipient))
            if bounces.get(key) and reason and reason != "maybe-sent":
                self._problem("misbounced", email.message_id, f"{recipient}: {reason}, but sent")
            self._account_recipient(email, recipient, happened, reason)
        for effect in sorted(happened - self._possible(email), key=repr):
            kind = "unexplained bounce" if effect.kind == BOUNCE else "misdelivered"
            self._problem(kind, email.message_id, str(effect))

    def _account_copies(self, email: Email, address: str, number: int) -> None:
        repeats = {
            effect.where
            for recipient in email.repeated
            for effect in model.expected(email, recipient, self._versions[2], DOMAINS)
            if effect.kind == FORWARD
        }
        allowed = 2 if address in repeats else 1
        if number > allowed:
            self._problem("duplicated", email.message_id, f"{number} copies in {address}")
        elif address in repeats and number < 2:
            self._problem("lost", email.message_id, f"the forced repetition to {address}")
        elif number and address in repeats:
            self.ledger["delivered again by force"] += 1

    def _account_recipient(
        self, email: Email, recipient: str, happened: set[Effect], reason: str
    ) -> None:
        """Under some version of the rules all that they want has happened."""
        for rules in self._in_effect(email):
            wanted = model.expected(email, recipient, rules, DOMAINS)
            if wanted <= happened:
                for effect in wanted:
                    name = {
                        FORWARD: "delivered once",
                        BOUNCE: "bounced once",
                        SUPPRESS: "bounce suppressed",
                        STORE: "stored",
                        DROP: "dropped",
                    }[effect.kind]
                    if reason == "maybe-sent":
                        name = "bounced at most once (answer lost)"
                    self.ledger[name] += 1
                return
        wanted = model.expected(email, recipient, self._in_effect(email)[-1], DOMAINS)
        self._problem("lost", email.message_id, f"{recipient}: {sorted(wanted, key=repr)}")

    def _account_executions(self) -> None:
        struck = {f.key for f in self._fired() if f.kind == kinds.ABORT}
        unsent = {f.key for f in self._fired() if f.site == "sqs:SendMessage"}
        for execution in self.cloud.executions():
            message_id = execution["input"]["mail"]["messageId"]
            explained = {
                "SUCCEEDED": True,
                "ABORTED": message_id in struck,
                "FAILED": execution.get("error") == "DeadLettered"
                or (execution.get("error") == "ParkingFailed" and message_id in unsent),
            }
            if not explained.get(execution["status"]):
                self._problem(
                    "died",
                    message_id,
                    f"{execution['name']} {execution['status']} {execution.get('error')}: "
                    f"{execution.get('cause', '')[:300]}",
                )

    def _account_letters(self) -> None:
        left = list(self._dead())
        garbage = {_original(letter) for _, letter in left if "original" in letter}
        for text in self._garbage:
            if text not in garbage:
                self._problem("lost", "?", f"notification {text!r} is in no queue")
        missing = [
            letter
            for _, letter in left
            if letter.get("mail", {}).get("messageId") == self._missing
            and letter["failure"]["error"] == "EmailNotFoundError"
        ]
        if not missing:
            self._problem("lost", self._missing, "the email without an object is in no queue")
        self.ledger["dead-lettered for good (no email behind them)"] = len(garbage) + bool(missing)
        for queue, letter in left:
            if self._mendable(letter):
                message_id = letter.get("mail", {}).get("messageId", "?")
                self._problem("stuck", message_id, f"{queue}: {json.dumps(letter)[:800]}")

    def _fired(self) -> list[kinds.Fired]:
        if not hasattr(self, "_all_fired"):
            self._all_fired = self.faults.fired()
        return self._all_fired

    def history(self, message_id: str) -> Iterator[str]:
        """What is known of an email, for whoever has to find out."""
        email = self.emails.get(message_id)
        if email:
            yield str(replace(email, raw=email.raw[:0]))
        for fired in self._fired():
            if fired.key == message_id:
                yield f"fault: {fired}"
        for execution in self.cloud.executions(message_id):
            yield (
                f"{execution['name']} {execution['status']} {execution.get('error', '')} "
                f"{json.dumps(execution['input'].get('redrive'))}"
            )
            if execution["status"] == "ABORTED":
                continue
            for event in self.cloud.history(execution["executionArn"]):
                for key, details in event.items():
                    if key.endswith("EventDetails") and "error" in details:
                        cause = details.get("cause", "")[:150]
                        yield f"  {event['type']} {details['error']} {cause}"
            for outcome in self._outcomes(execution["executionArn"]):
                yield f"  {json.dumps(outcome)}"


def _original(letter: Mapping[str, Any]) -> str:
    """What was no notification, however often it was parked."""
    original: str = letter["original"]
    try:
        inner = json.loads(original)
    except ValueError:
        return original
    return _original(inner) if isinstance(inner, dict) and "original" in inner else original


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
        fired = soak._fired()
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
        bad = Counter(problem.kind for problem in soak.problems)
        for problem in soak.problems[:10]:
            console.print(f"[red]{problem.kind}[/red] {problem.message_id}: {problem.text}")
            for line in soak.history(problem.message_id):
                console.print(f"    {line}", markup=False)
    wrong = ("lost", "duplicated", "misdelivered", "changed")
    counted = ", ".join(f"{bad.pop(kind, 0)} {kind}" for kind in wrong)
    rest = "".join(f", {number} {kind}" for kind, number in sorted(bad.items()))
    console.print(f"{counted}{rest}; {soak.copies} copies; {time.monotonic() - started:.0f} s")
    rare = {} if own else too_rare(options.emails, planned, fired)
    for kind, number in rare.items():
        console.print(f"[red]too few faults[/red]: {kind} fired {number} times")
    return 1 if soak.problems or rare else 0


if __name__ == "__main__":
    sys.exit(main())
