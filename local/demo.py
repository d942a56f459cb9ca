"""`make demo`: real emails through the real workflow, and what happened to each.

Exits 1 if any outcome is not the expected one. With --email, --sender and --recipients it sends
that email instead and shows where it went.
"""

import argparse
import os
import random
import smtplib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli import history
from local import picture
from local.cloud import Cloud
from local.google import Fault, Message

EVENTS = Path(__file__).parent.parent / "events"
SENDER = "zoe@elsewhere.example"
ANNA, BEN, EVE, OTTO = (f"{name}@gmail.example" for name in ("anna", "ben", "eve", "otto"))
_MIB = 1024 * 1024


@dataclass
class Case:
    """One email of the demo and everything that must become of it.

    outcomes: outcome → recipients; copies: mailbox → (labels, how many `Delivered-To` lines) of
    every new message; bounces: recipients named by every new bounce; parked: error classes of the
    new dead letters; attempts: of the delivery that took most, None = any.
    """

    title: str
    recipients: Sequence[str]
    outcomes: dict[str, Sequence[str]]
    rules: Sequence[str] = ()
    raw: bytes = b""
    sender: str = SENDER
    copies: dict[str, tuple[set[str], int]] = field(default_factory=dict)
    bounces: Sequence[Sequence[str]] = ()
    parked: Sequence[str] = ()
    attempts: int | None = None
    send: Callable[["Demo", "Case"], str] | None = None
    before: Callable[["Demo"], None] | None = None
    after: Callable[["Demo", "Case"], Iterator[str]] | None = None


class Demo:
    """The embedded cloud with a table, mailboxes and a running account of what was checked."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        # Through a pipe Rich would take 80 columns.
        given = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.console = Console(width=None if given else 150)
        self.failures: list[str] = []
        self.first_sent: float | None = None
        self.pictured = ""  # ARN of the email with the most recipients
        self.table = Table(title="What happened to each email", show_lines=False)
        self.table.add_column("email", no_wrap=True)
        for column in ("recipients", "rule matched", "outcome"):
            self.table.add_column(column, overflow="fold")
        for column in ("attempts", "ms"):
            self.table.add_column(column, justify="right", no_wrap=True)

    def smtp(self, raw: bytes, sender: str, recipients: Sequence[str]) -> str:
        """Send as another mail server would; SES's messageId is in the answer to DATA."""
        with smtplib.SMTP(*self.cloud.smtp) as server:
            server.ehlo()
            server.mail(sender)
            for recipient in recipients:
                code, answer = server.rcpt(recipient)
                if code != 250:
                    raise RuntimeError(f"{recipient} refused: {answer.decode()}")
            code, answer = server.data(raw)
        if code != 250:
            raise RuntimeError(f"email refused: {answer.decode()}")
        if self.first_sent is None:
            self.first_sent = time.time()
        return answer.split()[-1].decode()

    def stories(self, message_id: str) -> list[history.Story]:
        """Every execution of an email, oldest first."""
        return [
            history.tell(execution, self.cloud.history(execution["executionArn"]))
            for execution in self.cloud.executions(message_id)
        ]

    def run(self, case: Case) -> None:
        """Send one email, wait for all that it causes, show it and check it."""
        if case.before:
            case.before(self)
        mailboxes = {m: len(self.cloud.google.messages(m)) for m in (ANNA, BEN, EVE, OTTO)}
        bounces = len(self.cloud.bounces)
        parked = {id(q): len(self.dead_letters(q)) for q in _DLQS}
        send = case.send or (lambda demo, c: demo.smtp(c.raw, c.sender, c.recipients))
        message_id = send(self, case)
        self.cloud.wait_idle()
        told = self.stories(message_id)
        if len(case.recipients) == 5:
            self.pictured = told[0].arn
        self.show(case.title, case.recipients, told)
        problems = list(self._differences(case, told, mailboxes, bounces, parked))
        if case.after:
            problems += case.after(self, case)
        self.failures += [f"{case.title}: {problem}" for problem in problems]

    def show(self, title: str, recipients: Sequence[str], told: Sequence[history.Story]) -> None:
        """Add the email's row to the table."""
        ends = [f"{o.outcome} {o.error}".strip() for s in told for o in s.deliveries]
        why = ", ".join(dict.fromkeys(reason for s in told for reason in s.reasons))
        self.table.add_row(
            title,
            ", ".join(recipients) if len(recipients) < 4 else f"{len(recipients)} recipients",
            ", ".join(dict.fromkeys(rule for s in told for rule in s.rules)),
            ", ".join(_counted(ends)) + (f" ({why})" if why else ""),
            str(max((s.attempts for s in told), default=0)),
            f"{sum(s.milliseconds for s in told) * self.cloud.factor:.0f}",
        )

    def _differences(
        self,
        case: Case,
        told: Sequence[history.Story],
        mailboxes: dict[str, int],
        bounces: int,
        parked: dict[int, int],
    ) -> Iterator[str]:
        made: dict[str, set[str]] = {}
        for delivery in (d for s in told for d in s.deliveries):
            made.setdefault(delivery.outcome, set()).update(delivery.recipients)
        wanted = {outcome: set(recipients) for outcome, recipients in case.outcomes.items()}
        if made != wanted:
            yield f"outcomes are {made}, expected {wanted}"
        rules = {rule for s in told for rule in s.rules}
        if rules != set(case.rules):
            yield f"rules are {rules}, expected {set(case.rules)}"
        attempts = max((s.attempts for s in told), default=0)
        if case.attempts is not None and attempts != case.attempts:
            yield f"took {attempts} attempts, expected {case.attempts}"
        for mailbox, before in mailboxes.items():
            new = self.cloud.google.messages(mailbox)[before:]
            yield from _copy_differences(mailbox, new, case)
        named = [bounce["recipients"] for bounce in self.cloud.bounces[bounces:]]
        if named != [list(recipients) for recipients in case.bounces]:
            yield f"bounces are {named}, expected {case.bounces}"
        letters = [
            letter["failure"]["error"]
            for queue in _DLQS
            for letter in self.dead_letters(queue)[parked[id(queue)] :]
        ]
        if sorted(letters) != sorted(case.parked):
            yield f"dead letters are {letters}, expected {case.parked}"

    def dead_letters(self, queue: str) -> list[dict[str, Any]]:
        """What lies in a dead-letter queue, without taking it out."""
        return self.cloud.dead_letters(queue)


_DLQS = ("InputDlq", "GmailForwarderDlq", "BouncerDlq")


def _copy_differences(mailbox: str, new: Sequence[Message], case: Case) -> Iterator[str]:
    expected = case.copies.get(mailbox)
    if len(new) != (1 if expected else 0):
        yield f"{mailbox} got {len(new)} copies, expected {1 if expected else 0}"
        return
    if not expected:
        return
    labels, lines = expected
    raw = new[0].raw
    if set(new[0].labels) != labels:
        yield f"{mailbox}: labels are {new[0].labels}, expected {labels}"
    head, body = raw[: len(raw) - len(case.raw)], raw[len(raw) - len(case.raw) :]
    if _without_local_headers(case.raw) != case.raw:
        stripped = _without_local_headers(case.raw)
        head, body = raw[: len(raw) - len(stripped)], raw[len(raw) - len(stripped) :]
        if body != stripped:
            yield f"{mailbox}: the email changed on its way"
    elif body != case.raw:
        yield f"{mailbox}: the email changed on its way"
    if head.count(b"Delivered-To: ") != lines or head.count(b"\r\n") != lines:
        yield f"{mailbox}: {head!r} was put on top, expected {lines} Delivered-To lines"


def _without_local_headers(raw: bytes) -> bytes:
    return b"".join(
        line for line in raw.splitlines(keepends=True) if not line.startswith(b"X-Local-")
    )


def _counted(texts: Sequence[str]) -> Iterator[str]:
    for text in dict.fromkeys(texts):
        times = texts.count(text)
        yield f"{times} × {text}" if times > 1 else text


def _eml(name: str) -> bytes:
    return (EVENTS / f"{name}.eml").read_bytes()


INBOX = {"INBOX", "UNREAD"}
_HELLO = _eml("hello")


def seed(cloud: Cloud) -> None:
    """Mailboxes with credentials and rules; the global wildcard comes after the email without
    any rule."""
    cloud.add_mailbox(ANNA, default=True)
    cloud.add_mailbox(BEN)
    cloud.add_mailbox(EVE)
    cloud.put_rule("hello@example.com", "forward-to-gmail", ANNA)
    cloud.put_rule("sales@example.com", "forward-to-gmail", ANNA)
    cloud.put_rule("ben@example.com", "forward-to-gmail", BEN)
    cloud.put_rule("*@example.org", "forward-to-gmail", BEN)
    cloud.put_rule("old@example.org", "forward-to-gmail", ANNA, enabled=False)
    cloud.put_rule("archive@example.com", "store")
    cloud.put_rule("team@example.com", "forward-to-gmail", [ANNA, BEN])
    cloud.put_rule("eve@example.com", "forward-to-gmail", EVE)
    cloud.put_rule("otto@example.com", "forward-to-gmail", OTTO)
    cloud.put_rule("typo@example.com", "foward-to-gmail", ANNA)


def _bounce_the_rest(demo: Demo) -> None:
    demo.cloud.put_rule("*", "bounce")


def _two_429(demo: Demo) -> None:
    demo.cloud.google.faults.append(
        Fault(on="start", status=429, reason="rateLimitExceeded", times=2, mailbox=ANNA)
    )


def _revoke(demo: Demo) -> None:
    demo.cloud.google.revoke(EVE)


def _renew(demo: Demo, case: Case) -> Iterator[str]:
    before = len(demo.cloud.google.messages(EVE))
    executions = len(demo.cloud.executions())
    demo.cloud.add_mailbox(EVE)  # the token monitor does the rest
    demo.cloud.wait_idle()
    new = demo.cloud.google.messages(EVE)[before:]
    redriven = [
        history.tell(e, demo.cloud.history(e["executionArn"]))
        for e in demo.cloud.executions()[executions:]
    ]
    demo.show("… new token, redriven by itself", case.recipients, redriven)
    if len(new) != 1 or not new[0].raw.endswith(case.raw):
        yield f"after the redrive {EVE} has {len(new)} copies, expected 1"
    if demo.dead_letters("GmailForwarderDlq"):
        yield "the dead-letter queue is not empty after the redrive"


def _names_the_parameter(demo: Demo, _case: Case) -> Iterator[str]:
    cause = demo.dead_letters("GmailForwarderDlq")[-1]["failure"]["cause"]
    if "/ses-mail/test/gmail-tokens/otto_40gmail.example" not in cause:
        yield f"the dead letter does not name the missing parameter: {cause}"


def _twice(demo: Demo, case: Case) -> str:
    demo.cloud.pipe.pause()
    message_id = demo.smtp(case.raw, case.sender, case.recipients)
    demo.cloud.publish(demo.cloud.notification(message_id))
    demo.cloud.pipe.resume()
    return message_id


def _one_by_one(demo: Demo, case: Case) -> str:
    """What SES does when two receipt rules match: one notification each, under one messageId."""
    first, second = case.recipients
    message_id = demo.smtp(case.raw, case.sender, [first])
    notification = demo.cloud.notification(message_id)
    notification["receipt"]["recipients"] = [second]
    demo.cloud.publish(notification)
    return message_id


def _large(size: int) -> bytes:
    """An email with one attachment of about that many bytes, the same in every run."""
    head = (
        b"From: zoe@elsewhere.example\r\nTo: hello@example.com\r\nSubject: Holiday pictures\r\n"
        b"Message-ID: <large@elsewhere.example>\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    row = random.Random(7).randbytes(57).hex()[:76].encode() + b"\r\n"
    return head + row * (size // len(row))


CASES = (
    Case("no rule at all", ["stray@example.net"], {"stored": ["stray@example.net"]}, ["none"]),
    Case(
        "exact match",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        copies={ANNA: (INBOX, 1)},
        before=_bounce_the_rest,
        attempts=1,
    ),
    Case(
        "+tag",
        ["hello+news@example.com"],
        {"delivered": ["hello+news@example.com"]},
        ["hello@example.com"],
        copies={ANNA: (INBOX, 1)},
    ),
    Case(
        "mixed-case recipient",
        ["Hello@Example.COM"],
        {"delivered": ["Hello@Example.COM"]},
        ["hello@example.com"],
        copies={ANNA: (INBOX, 1)},
    ),
    Case(
        "domain wildcard",
        ["anything@example.org"],
        {"delivered": ["anything@example.org"]},
        ["*@example.org"],
        copies={BEN: (INBOX, 1)},
    ),
    Case(
        "global wildcard → bounce",
        ["nobody@example.com"],
        {"bounced": ["nobody@example.com"]},
        ["*"],
        bounces=[["nobody@example.com"]],
    ),
    Case(
        "disabled rule falls through",
        ["old@example.org"],
        {"delivered": ["old@example.org"]},
        ["*@example.org"],
        copies={BEN: (INBOX, 1)},
    ),
    Case(
        "two aliases of one mailbox",
        ["hello@example.com", "sales@example.com"],
        {"delivered": ["hello@example.com", "sales@example.com"]},
        ["hello@example.com", "sales@example.com"],
        copies={ANNA: (INBOX, 2)},
    ),
    Case(
        "five recipients, three outcomes",
        [f"{name}@example.com" for name in ("hello", "ben", "archive", "nobody", "noone")],
        {
            "delivered": ["hello@example.com", "ben@example.com"],
            "stored": ["archive@example.com"],
            "bounced": ["nobody@example.com", "noone@example.com"],
        },
        ["hello@example.com", "ben@example.com", "archive@example.com", "*"],
        copies={ANNA: (INBOX, 1), BEN: (INBOX, 1)},
        bounces=[["nobody@example.com", "noone@example.com"]],
    ),
    Case(
        "fan-out, one mailbox also another's target",
        ["team@example.com", "hello@example.com"],
        {"delivered": ["team@example.com", "hello@example.com"]},
        ["team@example.com", "hello@example.com"],
        copies={ANNA: (INBOX, 2), BEN: (INBOX, 1)},
    ),
    Case(
        "null sender, no such address",
        ["nobody@example.com"],
        {"suppressed": ["nobody@example.com"]},
        ["*"],
        sender="",
    ),
    Case(
        "auto-reply, no such address",
        ["nobody@example.com"],
        {"suppressed": ["nobody@example.com"]},
        ["*"],
        raw=_eml("auto-reply"),
    ),
    Case(
        "spam",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        raw=_eml("spam"),
        copies={ANNA: ({"SPAM"}, 1)},
    ),
    Case(
        "DMARC reject",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        raw=_eml("dmarc-reject"),
        copies={ANNA: ({"SPAM"}, 1)},
    ),
    Case(
        "virus",
        ["hello@example.com"],
        {"dropped": ["hello@example.com"]},
        ["none"],
        raw=_eml("virus"),
    ),
    Case(
        "forwarding loop",
        ["hello@example.com"],
        {"stored": ["hello@example.com"]},
        ["none"],
        raw=_eml("loop"),
    ),
    Case(
        "Gmail answers 429 twice",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        copies={ANNA: (INBOX, 1)},
        before=_two_429,
        attempts=3,
    ),
    Case(
        "token revoked",
        ["eve@example.com"],
        {"dead-lettered": ["eve@example.com"]},
        ["eve@example.com"],
        parked=["GmailTokenError"],
        before=_revoke,
        after=_renew,
        attempts=1,
    ),
    Case(
        "target that the token may not act for",
        ["otto@example.com"],
        {"dead-lettered": ["otto@example.com"]},
        ["otto@example.com"],
        parked=["GmailTokenError"],
        after=_names_the_parameter,
        attempts=1,
    ),
    Case(
        "malformed rule beside a good one",
        ["typo@example.com", "hello@example.com"],
        {"dead-lettered": ["typo@example.com"], "delivered": ["hello@example.com"]},
        ["typo@example.com", "hello@example.com"],
        copies={ANNA: (INBOX, 1)},
        parked=["InvalidRoutingRuleError"],
    ),
    Case(
        "30 MB attachment",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        raw=_large(30 * _MIB),
        copies={ANNA: (INBOX, 1)},
        attempts=1,
    ),
    Case(
        "broken MIME, 8-bit headers",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        raw=_eml("broken-mime"),
        copies={ANNA: (INBOX, 1)},
    ),
    Case(
        "duplicate notification",
        ["hello@example.com"],
        {"delivered": ["hello@example.com"]},
        ["hello@example.com"],
        copies={ANNA: (INBOX, 1)},
        send=_twice,
    ),
    Case(
        "two notifications of one messageId",
        ["hello@example.com", "ben@example.com"],
        {"delivered": ["hello@example.com", "ben@example.com"]},
        ["hello@example.com", "ben@example.com"],
        copies={ANNA: (INBOX, 1), BEN: (INBOX, 1)},
        send=_one_by_one,
    ),
)


def show_ends(demo: Demo) -> None:
    """Mailboxes, bounces and dead letters."""
    mailboxes = Table("mailbox", "messages", "of these as SPAM", "last subject", title="Mailboxes")
    for mailbox in (ANNA, BEN, EVE):
        messages = demo.cloud.google.messages(mailbox)
        last = message_from_bytes(messages[-1].raw[:65536])["Subject"] if messages else ""
        spam = sum("SPAM" in m.labels for m in messages)
        mailboxes.add_row(mailbox, str(len(messages)), str(spam), str(last))
    bounces = Table("to", "from", "no such address", title="Bounces")
    for bounce in demo.cloud.bounces:
        bounces.add_row(bounce["to"], bounce["sender"], ", ".join(bounce["recipients"]))
    letters = Table("queue", "recipients", "error", "cause", title="Dead letters")
    for queue in _DLQS:
        for letter in demo.dead_letters(queue):
            failure = letter["failure"]
            letters.add_row(
                demo.cloud.resource(queue).rpartition("/")[2],
                ", ".join(failure["recipients"]),
                failure["error"],
                history.error_message(failure["cause"]),
            )
    for table in (mailboxes, bounces, letters):
        demo.console.print(table)


def show_timeline(demo: Demo, told: history.Story) -> None:
    """One execution, state by state."""
    table = Table("ms", "state", "what happened", title=f"Execution {told.name}: {told.status}")
    for step in told.steps:
        milliseconds = (step.at - told.steps[0].at).total_seconds() * 1000
        table.add_row(f"{milliseconds:.0f}", step.state, step.what)
    demo.console.print(table)


def show_memory(demo: Demo) -> None:
    """The forwarder's peak over its idle state; above 24 MB the 30 MB email was not streamed."""
    idle, peak = demo.cloud.runtime.peak_memory(demo.cloud.resource("GmailForwarderFunction"))
    demo.console.print(
        f"Forwarder process: {idle / _MIB:.1f} MB idle, peak {peak / _MIB:.1f} MB: "
        f"+{(peak - idle) / _MIB:.1f} MB while 30 MB passed."
    )
    if peak - idle >= 24 * _MIB:
        demo.failures.append("the forwarder's memory grew by 24 MB or more")


def tour(demo: Demo) -> None:
    """All emails of the demo."""
    for case in CASES:
        case.raw = case.raw or _HELLO.replace(b"<hello@", b"<%d@" % CASES.index(case))
        with demo.console.status(case.title):
            try:
                demo.run(case)
            except Exception as error:
                # A workflow that is broken so badly is still to be shown as far as it goes.
                demo.failures.append(f"{case.title}: {type(error).__name__}: {error}")
    demo.console.print(demo.table)
    show_ends(demo)
    retried = [e for e in demo.cloud.executions() if e["status"] == "SUCCEEDED"]
    stories = [history.tell(e, demo.cloud.history(e["executionArn"])) for e in retried]
    show_timeline(demo, max(stories, key=lambda told: told.attempts))
    show_memory(demo)


def own_email(demo: Demo, path: Path, sender: str, recipients: Sequence[str]) -> None:
    """One email of the user's, with the demo's rules."""
    _bounce_the_rest(demo)
    message_id = demo.smtp(path.read_bytes(), sender, recipients)
    demo.cloud.wait_idle()
    told = demo.stories(message_id)
    demo.show(path.name, recipients, told)
    demo.console.print(demo.table)
    show_ends(demo)
    for execution in told:
        show_timeline(demo, execution)
    if not told:
        demo.failures.append("no execution was started")


def main() -> int:
    """Run the demo; the exit code."""
    began = time.time()
    parser = argparse.ArgumentParser(
        "make demo", usage="%(prog)s EMAIL=a.eml FROM=a@x RCPT=b@y,c@z"
    )
    parser.add_argument("--email", type=Path)
    parser.add_argument(
        "--picture", type=Path, help="where to draw the path of the five recipients"
    )
    parser.add_argument("--sender", default="")
    parser.add_argument("--recipients", default="", type=lambda text: text.split(","))
    given = parser.parse_args()
    own: Path | None = given.email
    if own and not (own.is_file() and all(given.recipients)):
        parser.error(f"EMAIL={own} is no file" if not own.is_file() else "RCPT names nobody")
    with Cloud() as cloud:
        demo = Demo(cloud)
        seed(cloud)
        if own:
            own_email(demo, own, given.sender, given.recipients)
        else:
            tour(demo)
            if given.picture:
                given.picture.write_text(picture.draw(cloud.history(demo.pictured)))
        first = (demo.first_sent or time.time()) - began
        demo.console.print(
            f"First email sent after {first:.1f} s, all done after {time.time() - began:.1f} s."
        )
    for failure in demo.failures:
        demo.console.print(f"[red]not as expected:[/red] {failure}", highlight=False)
    if not demo.failures and not own:
        demo.console.print(f"All {len(CASES)} outcomes are as expected.")
    return 1 if demo.failures else 0


if __name__ == "__main__":
    sys.exit(main())
