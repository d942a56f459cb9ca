"""The account of a soak: everything that can be seen after it, held against the contract.

Each check has a name, under which what is wrong is counted; what ought to be is model.py's to say.
The checks read what the local servers know (mailboxes, bounces, faults) and what the product wrote
(logs, histories, tables, queues), and nothing of the product's own code but cli/history.py, which
reads histories.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from cli.history import Attempt, Delivery, Story
from local import faults as kinds
from local import model
from local.faults import STATE_MACHINE, Fired
from local.model import BOUNCE, DROP, FORWARD, PARK, STORE, SUPPRESS, Effect, Email, Rule

BODY_CANARY, HEADER_CANARY = "body-canary-", "header-canary-"

FORWARDER, BOUNCER, ROUTER = "gmail-forwarder", "bouncer", "router"
_OF_ACTION = {FORWARD: FORWARDER, BOUNCE: BOUNCER, "fetch": "fetcher", "route": ROUTER}
_ENDED_WELL = {
    "delivered": FORWARD,
    "bounced": BOUNCE,
    "suppressed": BOUNCE,
    "stored": STORE,
    "dropped": DROP,
}
_UNDER_WAY = ("claimed", "uploading")
_IMPORT_OPTIONS = {
    "internalDateSource": "receivedTime",
    "processForCalendar": "true",
    "neverMarkSpam": "false",
}
# A dead letter lives 14 days and must find its delivery's record from then on.
_LEAST_LIFE = 44 * 24 * 3600
_PIPE_BATCH = 10
# Runs of characters that can be a credential, as tokens and session ids are made.
_WORD = re.compile(r"[A-Za-z0-9_-]{16,}")

_K = TypeVar("_K")
_V = TypeVar("_V")
Finding = tuple[str, str]  # message id and what is wrong


@dataclass(frozen=True)
class Problem:
    """What is wrong with an email; `kind` is the check that found it."""

    kind: str
    message_id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Copy:
    """An email in a mailbox: `named` in the lines on top of it, `same` if the rest is what was sent
    byte for byte."""

    message_id: str
    mailbox: str
    id: str
    named: tuple[str, ...]
    same: bool
    labels: frozenset[str]
    options: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A bounce that SES accepted; `execution` is the ARN of who asked, `items` are the request's
    BouncedRecipientInfoList."""

    message_id: str
    id: str
    to: str
    sender: str
    reporting_mta: str
    execution: str
    items: Sequence[Mapping[str, Any]]

    @property
    def recipients(self) -> list[str]:
        return [str(item["Recipient"]) for item in self.items]


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A message in a dead-letter queue; `body` is {"body": text} if it is no JSON."""

    queue: str
    body: Mapping[str, Any]
    attributes: Mapping[str, str]

    @property
    def message_id(self) -> str:
        return str(self.body.get("mail", {}).get("messageId", "?"))

    @property
    def failure(self) -> Mapping[str, Any]:
        failure = self.body.get("failure")
        return failure if isinstance(failure, dict) else {}


@dataclass(kw_only=True)
class Evidence:
    """What a run left behind; `lines` are JSON log lines with `function`, the short name of whose
    they are, and `records` the items of the deliveries table, deserialized."""

    emails: Mapping[str, Email]
    rules: Callable[[Email], Sequence[Mapping[str, Rule]]]  # every state that may have routed it
    domains: Sequence[str]
    copies: Sequence[Copy]
    reports: Sequence[Report]
    stories: Sequence[Story]
    records: Sequence[Mapping[str, Any]]
    letters: Sequence[Letter]  # all that ever lay in a dead-letter queue
    left: Sequence[Letter]  # those that are still there
    lines: Sequence[Mapping[str, Any]]
    fired: Sequence[Fired]
    stored: Mapping[str, bool]  # message id → whether the bucket holds what was sent
    written: Callable[[], Iterable[tuple[str, str]]]  # (where, text) of everything that was written
    secrets: Iterable[str]
    namespace: str  # of the metrics
    revoked: str  # the mailbox whose token is dead until everything is healed
    missing: str  # the message id of a notification without an object
    garbage: Sequence[str]  # what was no notification
    now: float  # the cloud's clock

    @cached_property
    def copies_of(self) -> Mapping[str, list[Copy]]:
        return _grouped(self.copies, lambda copy: copy.message_id)

    @cached_property
    def reports_of(self) -> Mapping[str, list[Report]]:
        return _grouped(self.reports, lambda report: report.message_id)

    @cached_property
    def stories_of(self) -> Mapping[str, list[Story]]:
        return _grouped(self.stories, lambda story: str(story.input["mail"]["messageId"]))

    @cached_property
    def by_arn(self) -> Mapping[str, Story]:
        return {story.arn: story for story in self.stories}

    @cached_property
    def fired_of(self) -> Mapping[str, list[Fired]]:
        return _grouped(self.fired, lambda fault: fault.key)

    @cached_property
    def lines_of(self) -> Mapping[tuple[str, str], list[Mapping[str, Any]]]:
        """(ARN of the execution, message) → lines."""
        return _grouped(
            self.lines, lambda line: (str(line.get("executionArn")), str(line.get("message")))
        )

    @cached_property
    def records_of(self) -> Mapping[tuple[str, str], list[Mapping[str, Any]]]:
        """(message id, FORWARD or BOUNCE) → records of deliveries."""
        found = [r for r in self.records if r["SK"].startswith(("FORWARD#", "BOUNCE#"))]
        return _grouped(
            found, lambda r: (r["PK"].removeprefix("EMAIL#"), r["SK"].partition("#")[0])
        )

    def possible(self, email: Email) -> set[Effect]:
        """Everything that some state of the rules wants, and what was before a release."""
        wanted = {
            effect
            for recipient in email.recipients
            for rules in self.rules(email)
            for effect in model.expected(email, recipient, rules, self.domains)
        }
        return wanted | {Effect(DROP, r) for r in email.recipients if email.released}

    def given_up(self, email: Email, mailbox: str) -> bool:
        """Whether some state of the rules wants no copy for the mailbox: what failed under another
        state is then never tried again."""
        return not all(
            any(
                effect.kind == FORWARD and effect.where == mailbox
                for recipient in email.recipients
                for effect in model.expected(email, recipient, rules, self.domains)
            )
            for rules in self.rules(email)
        )

    def together(self, email: Email, story: Story, action: str, target: str = "") -> set[Any]:
        """The recipients that one delivery of an execution may serve, per state of the rules."""
        ignore = bool(story.redrive.get("ignoreVerdicts"))
        return {
            model.together(email, story.recipients, rules, ignore, action, target)
            for rules in self.rules(email)
        }

    def suppressed(self, email: Email) -> dict[str, str]:
        """Recipient in lower case → reason of its suppressed bounce."""
        return {
            _names(record): record.get("reason", "")
            for record in self.records_of.get((email.message_id, "BOUNCE"), ())
            if record.get("delivery_state") == "suppressed"
        }

    def failures(self, message_id: str, action: str, target: str = "") -> list[Fired]:
        """The faults that can have made attempts of an action's function fail."""
        function = f"ses-mail-{_OF_ACTION[action]}-"
        return model.failures(message_id, function, target, self.fired_of.get(message_id, ()))

    def struck(self, message_id: str, site: str, by: str) -> bool:
        """Whether any fault struck there for the email."""
        return any(f.site == site and f.by == by for f in self.fired_of.get(message_id, ()))


def _grouped(items: Iterable[_V], key: Callable[[_V], _K]) -> dict[_K, list[_V]]:
    groups: dict[_K, list[_V]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def _names(record: Mapping[str, Any]) -> str:
    """The mailbox or recipient, in lower case, in the key of a delivery's record."""
    return str(record["SK"].split("#")[1]).lower()


def account(seen: Evidence) -> list[Problem]:
    """Every check of CHECKS."""
    return [
        Problem(name, message_id, text)
        for name, check in CHECKS.items()
        for message_id, text in check(seen)
    ]


# -- what became of every email --------------------------------------------------------------------


def happened(seen: Evidence, email: Email) -> set[Effect]:
    """What the local servers, the bucket and the executions show."""
    possible = seen.possible(email)
    boxes = {copy.mailbox for copy in seen.copies_of.get(email.message_id, ())}
    effects = {effect for effect in possible if effect.kind == FORWARD and effect.where in boxes}
    sent = {r for report in seen.reports_of.get(email.message_id, ()) for r in report.recipients}
    suppressed = seen.suppressed(email)
    outcomes = {
        (recipient, delivery.outcome)
        for story in seen.stories_of.get(email.message_id, ())
        for delivery in story.deliveries
        for recipient in delivery.recipients
    }
    for recipient in email.recipients:
        reason = suppressed.get(recipient.lower(), "")
        if recipient in sent or reason == "maybe-sent":  # which has a check of its own
            effects.add(Effect(BOUNCE, recipient))
        elif reason:
            effects.add(Effect(SUPPRESS, recipient, reason))
        for kind, outcome in ((STORE, "stored"), (DROP, "dropped")):
            if (recipient, outcome) in outcomes:
                effects.add(Effect(kind, recipient))
    return effects


def fulfilled(seen: Evidence, email: Email, recipient: str) -> frozenset[Effect]:
    """What some state of the rules wants of the recipient and has happened, or nothing."""
    done = happened(seen, email)
    for rules in seen.rules(email):
        wanted = model.expected(email, recipient, rules, seen.domains)
        if wanted <= done:
            return wanted
    return frozenset()


def ledger(seen: Evidence) -> Counter[str]:
    """What became of the recipients, in words."""
    words = {
        FORWARD: "delivered once",
        BOUNCE: "bounced once",
        SUPPRESS: "bounce suppressed",
        STORE: "stored",
        DROP: "dropped",
    }
    counted: Counter[str] = Counter()
    for email in seen.emails.values():
        suppressed = seen.suppressed(email)
        sent = {r for rep in seen.reports_of.get(email.message_id, ()) for r in rep.recipients}
        for recipient in email.recipients:
            for effect in fulfilled(seen, email, recipient):
                word = words[effect.kind]
                if effect.kind == BOUNCE and suppressed.get(recipient.lower()) == "maybe-sent":
                    word = f"bounce {'sent' if recipient in sent else 'not sent'}, answer lost"
                counted[word] += 1
        counted["delivered again by force"] += len(_by_force(seen, email))
    return +counted


def _by_force(seen: Evidence, email: Email) -> set[str]:
    """The mailboxes that must have got a second copy."""
    return {
        effect.where
        for recipient in email.repeated
        for effect in model.expected(email, recipient, seen.rules(email)[-1], seen.domains)
        if effect.kind == FORWARD
    }


def _lost(seen: Evidence) -> Iterator[Finding]:
    for email in seen.emails.values():
        for recipient in email.recipients:
            if not fulfilled(seen, email, recipient):
                rules = seen.rules(email)[-1]
                wanted = model.expected(email, recipient, rules, seen.domains)
                yield email.message_id, f"{recipient}: {sorted(wanted, key=repr)}"
        counts = Counter(copy.mailbox for copy in seen.copies_of.get(email.message_id, ()))
        for mailbox in _by_force(seen, email):
            if counts[mailbox] < 2:
                yield email.message_id, f"the forced repetition to {mailbox}"


def _duplicated(seen: Evidence) -> Iterator[Finding]:
    for email in seen.emails.values():
        counts = Counter(copy.mailbox for copy in seen.copies_of.get(email.message_id, ()))
        forced = _by_force(seen, email)
        for mailbox, number in counts.items():
            if number > 1 + (mailbox in forced):
                yield email.message_id, f"{number} copies in {mailbox}"


def _unasked(seen: Evidence) -> Iterator[Finding]:
    for email in seen.emails.values():
        for effect in sorted(happened(seen, email) - seen.possible(email), key=repr):
            if effect.kind not in (FORWARD, BOUNCE):
                yield email.message_id, str(effect)


def _wrong_mailbox(seen: Evidence) -> Iterator[Finding]:
    for copy in seen.copies:
        if copy.message_id not in seen.emails:
            yield copy.message_id, f"{copy.mailbox} holds an unknown email"
            continue
        email = seen.emails[copy.message_id]
        if not any(e.kind == FORWARD and e.where == copy.mailbox for e in seen.possible(email)):
            yield copy.message_id, f"{copy.mailbox} got it for {copy.named}"


def _changed(seen: Evidence) -> Iterator[Finding]:
    for copy in seen.copies:
        if copy.message_id in seen.emails and not copy.same:
            yield copy.message_id, f"in {copy.mailbox}"
    for message_id, same in seen.stored.items():
        if not same:
            yield message_id, "in the bucket"


def _delivered_to(seen: Evidence) -> Iterator[Finding]:
    for copy in seen.copies:
        email = seen.emails.get(copy.message_id)
        if email is None:
            continue
        groups = {
            group
            for story in seen.stories_of.get(copy.message_id, ())
            for group in seen.together(email, story, FORWARD, copy.mailbox)
        } - {()}
        if groups and copy.named not in groups:
            yield copy.message_id, f"{copy.mailbox}: {copy.named}, not one of {sorted(groups)}"


def _labels(seen: Evidence) -> Iterator[Finding]:
    for copy in seen.copies:
        if copy.message_id in seen.emails:
            wanted = model.labels(seen.emails[copy.message_id])
            if copy.labels != wanted:
                yield copy.message_id, f"{copy.mailbox}: {sorted(copy.labels)}"
        asked = {name: copy.options.get(name, "").lower() for name in _IMPORT_OPTIONS}
        if asked != {name: value.lower() for name, value in _IMPORT_OPTIONS.items()}:
            yield copy.message_id, f"{copy.mailbox}: imported with {asked}"


# -- bounces ---------------------------------------------------------------------------------------


def _bounce_count(seen: Evidence) -> Iterator[Finding]:
    for execution, number in Counter(report.execution for report in seen.reports).items():
        if execution not in seen.by_arn:
            yield "?", f"{number} bounces by no execution"
        elif number > 1:
            story = seen.by_arn[execution]
            yield str(story.input["mail"]["messageId"]), f"{number} bounces by {story.name}"
    for message_id, reports in seen.reports_of.items():
        named = Counter(r.lower() for report in reports for r in set(report.recipients))
        for recipient, number in named.items():
            if number > 1:
                yield message_id, f"{recipient} bounced {number} times"


def _bounce_recipients(seen: Evidence) -> Iterator[Finding]:
    for message_id, reports in seen.reports_of.items():
        email = seen.emails[message_id]
        done = {r for r, why in seen.suppressed(email).items() if why == "maybe-sent"}
        for report in reports:
            named = report.recipients
            lower = {r.lower() for r in named}
            if report.execution in seen.by_arn:
                groups = seen.together(email, seen.by_arn[report.execution], BOUNCE)
                if not any(
                    lower <= {r.lower() for r in group} <= lower | done for group in groups
                ) or len(lower) < len(named):
                    yield message_id, f"{named}, not all of one of {sorted(groups)}"
            done |= lower


def _bounce_report(seen: Evidence) -> Iterator[Finding]:
    for report in seen.reports:
        domains = {r.lower().rpartition("@")[2] for r in report.recipients}
        local, _, domain = report.sender.partition("@")
        if local != "mailer-daemon" or domain not in domains:
            yield report.message_id, f"sent by {report.sender} for {report.recipients}"
        if report.reporting_mta != f"dns; {domain}":
            yield report.message_id, f"Reporting-MTA: {report.reporting_mta}"
        if report.to != seen.emails[report.message_id].sender:
            yield report.message_id, f"sent to {report.to}"


def _bounce_fields(seen: Evidence) -> Iterator[Finding]:
    for report in seen.reports:
        for item in report.items:
            fields = item.get("RecipientDsnFields", {})
            if fields.get("Status") != "5.1.1" or fields.get("Action") != "failed":
                yield report.message_id, f"{item['Recipient']}: {fields}"
            if item.get("BounceType") not in ("DoesNotExist", None):
                yield report.message_id, f"{item['Recipient']}: {item['BounceType']}"


def _final_recipient(seen: Evidence) -> Iterator[Finding]:
    for report in seen.reports:
        for item in report.items:
            final = item.get("RecipientDsnFields", {}).get("FinalRecipient", item["Recipient"])
            if final != item["Recipient"]:
                yield report.message_id, f"{item['Recipient']} is told as {final}"


def _bounce_unasked(seen: Evidence) -> Iterator[Finding]:
    for report in seen.reports:
        email = seen.emails[report.message_id]
        possible = seen.possible(email)
        for recipient in report.recipients:
            if Effect(BOUNCE, recipient) not in possible:
                harm = model.harm(email, seen.domains)
                yield report.message_id, f"{recipient}: no rule wants it, or {harm or 'harmless'}"


def _maybe_sent(seen: Evidence) -> Iterator[Finding]:
    for email in seen.emails.values():
        sent = {r for rep in seen.reports_of.get(email.message_id, ()) for r in rep.recipients}
        for recipient in email.recipients:
            if seen.suppressed(email).get(recipient.lower()) != "maybe-sent":
                continue
            fired = seen.fired_of.get(email.message_id, ())
            if not model.may_be_in_doubt(email.message_id, recipient, fired, recipient in sent):
                yield (
                    email.message_id,
                    f"{recipient}: no fault explains it, {'' if recipient in sent else 'not '}sent",
                )


# -- the deliveries table --------------------------------------------------------------------------


def _records(seen: Evidence) -> Iterator[Finding]:
    for email in seen.emails.values():
        yield from _forward_records(seen, email)
        yield from _bounce_records(seen, email)
    for record in seen.records:
        if record.get("entity_type") == "DELIVERY":
            message_id = record["PK"].removeprefix("EMAIL#")
            if "expires_at" in record and float(record["expires_at"]) - seen.now < _LEAST_LIFE:
                yield message_id, f"{record['SK']} expires at {record['expires_at']}"
            execution = seen.by_arn.get(record.get("execution", ""))
            if record.get("delivery_state") in _UNDER_WAY:
                continue  # nothing came of it yet, and _forward_records says whether it may be so
            if execution is None or execution.input["mail"]["messageId"] != message_id:
                yield message_id, f"{record['SK']} names execution {record.get('execution')}"


def _forward_records(seen: Evidence, email: Email) -> Iterator[Finding]:
    copies = _grouped(seen.copies_of.get(email.message_id, ()), lambda copy: copy.mailbox)
    records = _grouped(seen.records_of.get((email.message_id, "FORWARD"), ()), _names)
    for mailbox in sorted(copies.keys() | records.keys()):
        held, kept = copies.get(mailbox, []), records.get(mailbox, [])
        if not held and seen.given_up(email, mailbox):
            kept = [record for record in kept if record.get("delivery_state") not in _UNDER_WAY]
        if len(held) != len(kept):
            yield email.message_id, f"{mailbox}: {len(held)} copies, {len(kept)} records"
        ids = {copy.id for copy in held} | {""}  # a finished session need not repeat its answer
        named = {copy.named for copy in held}
        for record in kept:
            wrong = record.get("delivery_state") != "delivered" or "upload" in record
            if wrong or record.get("result_id") not in ids:
                shown = {name: record.get(name) for name in ("delivery_state", "result_id")}
                yield email.message_id, f"{record['SK']}: {shown}"
            elif tuple(record.get("recipients", ())) not in named:
                yield email.message_id, f"{record['SK']} is for {record.get('recipients')}"


def _bounce_records(seen: Evidence, email: Email) -> Iterator[Finding]:
    reports = seen.reports_of.get(email.message_id, ())
    ids = {r.lower(): report.id for report in reports for r in report.recipients}
    records = {_names(r): r for r in seen.records_of.get((email.message_id, "BOUNCE"), ())}
    for recipient in sorted(ids.keys() - records.keys()):
        yield email.message_id, f"{recipient} was bounced, but there is no record"
    for recipient, record in records.items():
        state, reason = record.get("delivery_state"), record.get("reason", "")
        if state == "bounced" and record.get("result_id") != ids.get(recipient, ""):
            yield email.message_id, f"{record['SK']}: result {record.get('result_id')!r}"
        elif state == "suppressed" and recipient in ids and reason != "maybe-sent":
            yield email.message_id, f"{record['SK']}: {reason}, but it was sent"
        elif state not in ("bounced", "suppressed"):
            yield email.message_id, f"{record['SK']}: {state}"


# -- dead letters and executions -------------------------------------------------------------------


def _groundless(seen: Evidence) -> Iterator[Finding]:
    for letter in seen.letters:
        if not _grounded(seen, letter):
            shown = {k: letter.failure.get(k) for k in ("action", "target", "error", "cause")}
            yield letter.message_id, f"{letter.queue}: {json.dumps(shown)[:500]}"


def _grounded(seen: Evidence, letter: Letter) -> bool:
    """Whether a fault, a rule or a token that was broken on purpose explains the letter."""
    failure, message_id = letter.failure, letter.message_id
    if "original" in letter.body:
        return original(letter.body) in seen.garbage
    if not failure:  # SNS could not deliver it
        return any(
            f.site == "sns:Deliver" and f.kind == kinds.LOST
            for f in seen.fired_of.get(message_id, ())
        )
    action, target, error = failure["action"], failure.get("target", ""), failure["error"]
    story = seen.by_arn.get(failure.get("executionArn", ""))
    if story is None:
        return False
    if action == "execution":
        return _died_for_a_reason(seen, story)
    if error == "EmailNotFoundError":
        return message_id == seen.missing
    if error == "InvalidRoutingRuleError":
        return _malformed(seen, seen.emails[message_id], failure["recipients"])
    if error == "GmailTokenError":
        return bool(target == seen.revoked)
    if error in _REJECTED:
        site = _REJECTED[error]
        return any(
            f.site == site and f.kind == kinds.REJECT
            for f in seen.failures(message_id, action, target)
        )
    failed = [a.error for a in _attempts(story, failure) if a.error]
    own = [e for e in failed if e != "DeliveryInProgressError"]
    return bool(failed) and len(seen.failures(message_id, action, target)) >= max(1, len(own))


_REJECTED = {"GmailRejectedError": "gmail:Start", "BounceRejectedError": "ses:SendBounce"}


def _malformed(seen: Evidence, email: Email, recipients: Iterable[str]) -> bool:
    """Whether each recipient's rule was malformed at some time."""
    return all(
        any(
            Effect(PARK, recipient) in model.expected(email, recipient, rules, seen.domains)
            for rules in seen.rules(email)
        )
        for recipient in recipients
    )


def _attempts(story: Story, failure: Mapping[str, Any]) -> Sequence[Attempt]:
    """The attempts of the task whose failure a dead letter tells."""
    if failure["action"] in ("fetch", "route"):
        number = ("fetch", "route").index(failure["action"])
        outside = [task for task in story.tasks if task.iteration is None]
        return outside[number].attempts if number < len(outside) else ()
    for delivery in story.deliveries:
        same = (delivery.action, delivery.target) == (failure["action"], failure["target"])
        if same and set(delivery.recipients) == set(failure["recipients"]) and delivery.tasks:
            return delivery.tasks[0].attempts
    return ()


def _died_for_a_reason(seen: Evidence, story: Story) -> bool:
    message_id = str(story.input["mail"]["messageId"])
    if story.status == "ABORTED":
        return any(f.kind == kinds.ABORT for f in seen.fired_of.get(message_id, ()))
    if story.error == "ParkingFailed":
        return seen.struck(message_id, "sqs:SendMessage", STATE_MACHINE)
    # Dead-lettered, but the mark is missing.
    return story.error == "DeadLettered" and seen.struck(
        message_id, "dynamodb:PutItem", STATE_MACHINE
    )


def _executions(seen: Evidence) -> Iterator[Finding]:
    for story in seen.stories:
        fine = story.status == "SUCCEEDED" or (
            story.error == "DeadLettered"
            if story.status == "FAILED" and story.error != "ParkingFailed"
            else story.status in ("FAILED", "ABORTED") and _died_for_a_reason(seen, story)
        )
        if not fine:
            text = f"{story.name} {story.status} {story.error}: {story.cause[:300]}"
            yield str(story.input["mail"]["messageId"]), text


def _letter_form(seen: Evidence) -> Iterator[Finding]:
    for letter in seen.letters:
        failure = letter.failure
        if not failure or "original" in letter.body:
            continue
        story = seen.by_arn.get(failure.get("executionArn", ""))
        if story is None:
            yield letter.message_id, f"of no execution: {failure}"
            continue
        wanted = {
            "mail": story.input["mail"],
            "receipt": story.input["receipt"],
            "redrive": {
                **story.redrive,
                "attempt": story.redrive.get("attempt", 0) + 1,
                "recipients": failure["recipients"],
            },
        }
        if {name: value for name, value in letter.body.items() if name != "failure"} != wanted:
            yield letter.message_id, f"{json.dumps(letter.body)[:800]}"
        if set(failure) != _FAILURE or not failure["at"]:
            yield letter.message_id, f"failure has {sorted(failure)}"
        attributes = {
            "MessageId": letter.message_id,
            "Action": failure["action"],
            "Error": failure["error"],
        }
        if letter.attributes != attributes:
            yield letter.message_id, f"attributes {letter.attributes}"


_FAILURE = {
    *("action", "target", "matchedRule", "recipients"),
    *("error", "cause", "executionArn", "at"),
}


def original(letter: Mapping[str, Any]) -> str:
    """What was no notification, however often it was parked."""
    text: str = letter["original"]
    try:
        inner = json.loads(text)
    except ValueError:
        return text
    return original(inner) if isinstance(inner, dict) and "original" in inner else text


def hopeless(missing: str, garbage: Sequence[str], letter: Mapping[str, Any]) -> bool:
    """Whether a letter has no email behind it, so that nobody can ever deliver it."""
    if "original" in letter:
        return original(letter) in garbage
    return bool(letter.get("mail", {}).get("messageId") == missing)


def _stuck(seen: Evidence) -> Iterator[Finding]:
    for letter in seen.left:
        if not hopeless(seen.missing, seen.garbage, letter.body):
            yield letter.message_id, f"{letter.queue}: {json.dumps(letter.body)[:800]}"
    parked = {original(letter.body) for letter in seen.left if "original" in letter.body}
    for text in seen.garbage:
        if text not in parked:
            yield "?", f"notification {text!r} is in no queue"
    if not any(letter.message_id == seen.missing for letter in seen.left):
        yield seen.missing, "the email without an object is in no queue"


# -- what operators see ----------------------------------------------------------------------------


def _routing_decisions(seen: Evidence) -> Iterator[Finding]:
    for story in seen.stories:
        message_id = str(story.input["mail"]["messageId"])
        lines = seen.lines_of.get((story.arn, "Routing decision"), [])
        invocations = _grouped(lines, lambda line: str(line.get("aws_request_id")))
        routed = any(d.action not in ("fetch", "route") for d in story.deliveries)
        if not invocations and routed:
            yield message_id, f"{story.name}: no line"
        again = len(seen.failures(message_id, "route"))
        if len(invocations) > 1 + again:
            yield message_id, f"{story.name}: decided {len(invocations)} times, {again} faults"
        email = seen.emails.get(message_id)
        for made in invocations.values() if email else ():
            yield from _decided(seen, email, story, made)


def _decided(
    seen: Evidence, email: Email | None, story: Story, lines: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """The lines of one invocation: one per recipient, each as some state of the rules wants it."""
    assert email
    told = Counter(str(line.get("recipient")) for line in lines)
    if told != Counter(story.recipients):
        yield email.message_id, f"{story.name}: decisions for {dict(told)}"
    ignore = bool(story.redrive.get("ignoreVerdicts"))
    for line in lines:
        recipient = str(line.get("recipient"))
        wanted = {
            (made.action, ", ".join(made.targets), made.matched_rule)
            for rules in seen.rules(email)
            for made in [model.decision(email, recipient, rules, ignore)]
        }
        said = (line.get("action"), line.get("target"), line.get("matchedRule"))
        if said not in wanted or not line.get("reason"):
            yield email.message_id, f"{story.name}: {recipient}: {said} {line.get('reason')}"
        if line.get("messageId") != email.message_id:
            yield email.message_id, f"{story.name}: messageId {line.get('messageId')}"


_RESULT = {"messageId", "executionArn", "recipients", "action", "target", "result"}


def _action_results(seen: Evidence) -> Iterator[Finding]:
    for line in seen.lines:
        if line.get("message") == "Action result":
            missing = _RESULT - line.keys()
            if missing or not (line.keys() & {"resultId", "error"}):
                yield str(line.get("messageId", "?")), f"line without {sorted(missing)}: {line}"
    for story in seen.stories:
        if story.status == "ABORTED":
            continue  # nobody kept its history
        message_id = str(story.input["mail"]["messageId"])
        lines = seen.lines_of.get((story.arn, "Action result"), [])
        ended = _grouped(
            (line for line in lines if line.get("result") in _ENDED_WELL),
            lambda line: (line["action"], line["target"], tuple(sorted(line["recipients"]))),
        )
        for delivery in story.deliveries:
            key = (delivery.action, delivery.target, tuple(sorted(delivery.recipients)))
            told = ended.pop(key, [])
            yield from _told(seen, story, delivery, told, lines)
        for key in ended:
            yield message_id, f"{story.name}: a line of no delivery: {key}"


def _told(
    seen: Evidence,
    story: Story,
    delivery: Delivery,
    told: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
) -> Iterator[Finding]:
    """One delivery's lines: one of its end, unless answers got lost, and one per failed attempt."""
    message_id = str(story.input["mail"]["messageId"])
    what = f"{story.name}: {delivery.action} {delivery.target} {delivery.outcome}"
    action = delivery.action if delivery.action in (FORWARD, BOUNCE) else "route"
    if action == "route" and delivery.outcome not in _ENDED_WELL:
        return
    again = len(seen.failures(message_id, action, delivery.target))
    # On a busy machine the workflow gives an attempt up that then ends well all the same.
    again += sum(a.error == "States.Timeout" for task in delivery.tasks for a in task.attempts)
    if delivery.outcome in _ENDED_WELL and not told:
        yield message_id, f"{what}: no line"
    if len(told) > 1 + again:
        yield message_id, f"{what}: {len(told)} lines, {again} faults"
    ids = {report.id for report in seen.reports_of.get(message_id, ())} | {
        copy.id for copy in seen.copies_of.get(message_id, ()) if copy.mailbox == delivery.target
    }
    if delivery.outcome in _ENDED_WELL and told and told[-1]["result"] != delivery.outcome:
        yield message_id, f"{what}: told as {told[-1]['result']}"
    for line in told:
        if line["result"] in ("delivered", "bounced") and line["resultId"] not in ids | {""}:
            yield message_id, f"{what}: nobody gave {line['resultId']}"
    raised = [
        attempt.error
        for task in delivery.tasks[:1]
        for attempt in task.attempts
        if attempt.error and "." not in attempt.error  # the rest is Lambda's or Step Functions'
    ]
    failed = [
        line
        for line in lines
        if line.get("result") == "failed"
        and (line["action"], line["target"]) == (delivery.action, delivery.target)
    ]
    if len(failed) < len(raised) or not all(line.get("error") for line in failed):
        yield message_id, f"{what}: {len(raised)} errors, lines {[x.get('error') for x in failed]}"


def _metrics(seen: Evidence) -> Iterator[Finding]:
    counted: Counter[tuple[str, str]] = Counter()  # (function, metric)
    for line in seen.lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            if directive["Namespace"] != seen.namespace:
                yield "?", f"namespace {directive['Namespace']}"
            for metric in directive["Metrics"]:
                values = line[metric["Name"]]
                total = sum(values) if isinstance(values, list) else values
                counted[line["function"], metric["Name"]] += total
    told = _told_by_lines(seen)
    ended = Counter(
        delivery.outcome
        for story in seen.stories
        for delivery in story.deliveries
        if delivery.outcome in _ENDED_WELL
    )
    for name, outcome in _BY_OUTCOME.items():
        function = _OF_ACTION[_ENDED_WELL[outcome]]
        if counted[function, name] < ended[outcome]:
            yield "?", f"{name} is {counted[function, name]}, {ended[outcome]} were {outcome}"
    for function, name in sorted(counted.keys() | told.keys()):
        if name in _LINES or (function, name) in told:
            value, lines = counted[function, name], told[function, name]
            if not lines - _uncounted(seen, function) <= value <= lines:
                yield "?", f"{name} of {function} is {value}, the lines say {lines}"


_BY_OUTCOME = {"Forwarded": "delivered", "Bounced": "bounced", "BouncesSuppressed": "suppressed"}
_LINES = {
    *_BY_OUTCOME,
    *("Stored", "Dropped", "Unrouted", "InvalidRules", "Viruses", "Loops", "Spam", "Swept"),
    *("EmailsFetched", "StartsStarted", "StartsParked", "StartsFailed"),
}


def _told_by_lines(seen: Evidence) -> Counter[tuple[str, str]]:
    """What the log lines say of what the metrics count."""
    told: Counter[tuple[str, str]] = Counter()
    unsafe: set[tuple[str, str, str]] = set()
    for line in seen.lines:
        function, message = line["function"], line.get("message")
        if message == "Action result" and function in (FORWARDER, BOUNCER):
            for name, outcome in _BY_OUTCOME.items():
                told[function, name] += line.get("result") == outcome
            email = seen.emails.get(str(line.get("messageId")))
            if line.get("result") == "delivered" and email:
                told[function, "Spam"] += model.labels(email) == model.SPAM
        elif message == "Routing decision":
            name = {STORE: "Stored", DROP: "Dropped", PARK: "InvalidRules"}.get(line["action"], "")
            if name:
                told[function, name] += 1
            told[function, "Unrouted"] += line.get("reason") == "no rule"
            if line.get("reason") in ("virus", "loop"):
                unsafe.add((line["aws_request_id"], line["executionArn"], line["reason"]))
        elif message in ("Email fetched", "Execution swept", "Start failed"):
            told[function, _OF_MESSAGE[message]] += 1
        elif message == "Start result" and line.get("result") in ("started", "parked"):
            told[function, f"Starts{line['result'].capitalize()}"] += 1
    for _, _, reason in unsafe:
        told[ROUTER, {"virus": "Viruses", "loop": "Loops"}[reason]] += 1
    return +told


_OF_MESSAGE = {
    "Email fetched": "EmailsFetched",
    "Execution swept": "Swept",
    "Start failed": "StartsFailed",
}


def _uncounted(seen: Evidence, function: str) -> int:
    """How much may have been logged and not counted: an invocation's metrics go out at its end, and
    some end by force."""
    ends = (kinds.TIMED_OUT, *(kinds.KILLED if function in ("starter", "sweeper") else ()))
    died = sum(f.kind in ends and f"-{function}-" in f.by for f in seen.fired)
    return died * _PIPE_BATCH


def _secrets(seen: Evidence) -> Iterator[Finding]:
    words = {word for secret in seen.secrets for word in _WORD.findall(secret)}
    for where, text in seen.written():
        for canary in (BODY_CANARY, HEADER_CANARY, "upload_id="):
            if canary in text:
                at = text.index(canary)
                yield kinds.message_id_in(text), f"{where}: {text[max(0, at - 60) : at + 20]}"
        for word in sorted(words.intersection(_WORD.findall(text))):
            yield kinds.message_id_in(text), f"{where} holds a credential: {word[:6]}…"


CHECKS: Mapping[str, Callable[[Evidence], Iterator[Finding]]] = {
    "lost": _lost,
    "duplicated": _duplicated,
    "stored or dropped unasked": _unasked,
    "wrong mailbox": _wrong_mailbox,
    "changed bytes": _changed,
    "Delivered-To lines": _delivered_to,
    "labels and import options": _labels,
    "bounces per email": _bounce_count,
    "bounce names all recipients": _bounce_recipients,
    "bounce sender and addressee": _bounce_report,
    "bounce status": _bounce_fields,
    "Final-Recipient": _final_recipient,
    "bounce unasked": _bounce_unasked,
    "maybe-sent without a fault": _maybe_sent,
    "records of deliveries": _records,
    "groundless dead letters": _groundless,
    "dead letters' form": _letter_form,
    "stuck": _stuck,
    "executions": _executions,
    "routing decisions": _routing_decisions,
    "action results": _action_results,
    "metrics": _metrics,
    "secrets": _secrets,
}
