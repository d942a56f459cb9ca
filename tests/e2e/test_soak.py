"""A short soak; `make soak` runs a long one."""

import pytest

from local import faults
from local.faults import ERROR, RESET_AFTER, THROTTLE, Fault, Faults, Fired, decide
from local.model import may_be_in_doubt
from local.soak import Soak, digest, main, make_emails, make_faults, too_rare

SEED, EMAILS = 3, 60


@pytest.mark.slow
def test_every_email_is_accounted_for() -> None:
    emails = make_emails(SEED, EMAILS)
    soak = Soak(emails, Faults(SEED, make_faults(SEED, emails)), factor=0.05, patience=45)
    with soak.cloud:
        soak.run()
        fired = soak.faults.fired()  # the log goes with the cloud
        told = [
            line
            for problem in soak.problems
            for line in (f"{problem.kind}: {problem.text}", *soak.history(problem.message_id))
        ]
    assert not told, "\n".join(told)
    # Every way to end was there, and a good deal of faults.
    assert {"delivered once", "bounced once", "bounce suppressed", "stored", "dropped"} <= set(
        soak.ledger
    )
    assert len(fired) > EMAILS


def test_one_seed_gives_one_schedule() -> None:
    schedules = [
        digest(seed, emails, make_faults(seed, emails))
        for seed in (1, 1, 2)
        for emails in [make_emails(seed, 50)]
    ]
    assert schedules[0] == schedules[1] != schedules[2]


def test_a_fault_hits_as_often_as_its_rate_says() -> None:
    faults = [Fault(ERROR, "s3:*", 0.1)]
    hits = sum(
        decide(1, faults, "s3:GetObject", "f", f"email {n}", 0, 0) is not None
        for n in range(10_000)
    )
    assert 800 < hits < 1200


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        (Fault(ERROR, "s3:*"), True),
        (Fault(ERROR, "s3:GetObject", by="*router*"), False),
        (Fault(ERROR, "sqs:*"), False),
        (Fault(ERROR, "*", keys=["a"], attempts=[2], calls=[3]), True),
        (Fault(ERROR, "*", keys=["b"]), False),
        (Fault(ERROR, "*", attempts=[0, 1]), False),
        (Fault(ERROR, "*", calls=[0]), False),
        (Fault(ERROR, "*", rate=0), False),
    ],
)
def test_what_a_fault_covers(fault: Fault, hit: bool) -> None:
    struck = decide(1, [fault], "s3:GetObject", "ses-mail-fetcher-test", "a", 2, 3)
    assert struck is (fault if hit else None)


BOUNCER = "ses-mail-bouncer-test"
TRANSACT, SEND = "dynamodb:TransactWriteItems", "ses:SendBounce"


@pytest.mark.parametrize(
    ("kind", "site", "by", "whole", "about", "sent", "unsent"),
    [
        (faults.KILL_BEFORE, SEND, BOUNCER, False, "SendBounce {r}", False, True),
        (faults.KILL_AFTER, SEND, BOUNCER, False, "SendBounce {r}", True, False),
        (faults.RESET_AFTER, SEND, BOUNCER, False, "SendBounce {r}", True, False),
        (faults.TIMEOUT_BEFORE, SEND, BOUNCER, False, "SendBounce {r}", False, True),
        (faults.ERROR, SEND, BOUNCER, False, "SendBounce {r}", False, True),
        # A refusal tells that nothing was sent, and a slow answer is one.
        (faults.THROTTLE, SEND, BOUNCER, True, "SendBounce {r}", False, False),
        (faults.REJECT, SEND, BOUNCER, True, "SendBounce {r}", False, False),
        (faults.SLOW, SEND, BOUNCER, True, "SendBounce {r}", False, False),
        (faults.KILL_AFTER, SEND, BOUNCER, False, "SendBounce x@one.example", False, False),
        (faults.KILL_AFTER, TRANSACT, BOUNCER, False, "sending {r}", False, True),
        (faults.KILL_BEFORE, TRANSACT, BOUNCER, False, "sending {r}", False, False),
        (faults.RESET_AFTER, TRANSACT, BOUNCER, True, "sending {r}", False, False),
        # SES had said what it did.
        (faults.KILL_BEFORE, TRANSACT, BOUNCER, False, "bounced {r}", True, False),
        (faults.KILL_AFTER, TRANSACT, BOUNCER, False, "bounced {r}", False, False),
        (faults.ERROR, TRANSACT, BOUNCER, True, "bounced {r}", True, False),
        # The client's own retry mends it.
        (faults.ERROR, TRANSACT, BOUNCER, False, "bounced {r}", False, False),
        (faults.ERROR, TRANSACT, BOUNCER, True, "given-back {r}", False, True),
        (faults.KILL_AFTER, TRANSACT, BOUNCER, True, "claimed {r}", False, False),
        (faults.KILL_AFTER, "s3:GetObject", BOUNCER, True, "", False, False),
        (faults.RESET_AFTER, "lambda:Invoke", faults.STATE_MACHINE, True, "", False, False),
        (faults.TIMED_OUT, "lambda:Timeout", BOUNCER, True, "x@one.example {r}", True, True),
        (faults.TIMED_OUT, "lambda:Timeout", BOUNCER, True, "x@one.example", False, False),
        (faults.TIMED_OUT, "lambda:Timeout", "ses-mail-router-test", True, "{r}", False, False),
    ],
)
def test_what_leaves_a_bounce_in_doubt(
    kind: str, site: str, by: str, whole: bool, about: str, sent: bool, unsent: bool
) -> None:
    fired = Fired(kind, site, by, "one", 0, 0, whole, about.format(r="gone@one.example"))
    for really, excused in ((True, sent), (False, unsent)):
        assert may_be_in_doubt("one", "gone@one.example", [fired], really) is excused
        assert not may_be_in_doubt("other", "gone@one.example", [fired], really)


def test_a_kind_that_hardly_fired_is_told() -> None:
    planned = [Fault(THROTTLE, "s3:*"), Fault(ERROR, "s3:*"), Fault(RESET_AFTER, "s3:*")]
    fired = [Fired(k, "", "", "", 0, 0) for k in [THROTTLE] * 20 + [ERROR] * 19]
    assert too_rare(1000, planned, fired) == {ERROR: 19, RESET_AFTER: 0}
    # Half a run owes half of it.
    assert too_rare(500, planned, fired) == {RESET_AFTER: 0}
    assert too_rare(40, planned, []) == {}


def test_faults_of_a_command_line() -> None:
    killed, throttled, parked = faults.parse(
        "killed-after@gmail:Chunk=0.1, throttled@dynamodb, rejected@ses:SendBounce=1"
    )
    assert killed == Fault(faults.KILL_AFTER, "gmail:Chunk", 0.1, whole=True)
    assert throttled == Fault(faults.THROTTLE, "dynamodb:*", 1, whole=True)
    assert parked.kind == faults.REJECT


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("throttled@s4", "no such site; known are s3, dynamodb"),
        ("lost@s3:GetObject", "the kinds at s3:GetObject are throttled, 5xx"),
        ("throttled", "no such site"),
        ("throttled@s3=2", "between 0 and 1"),
        ("throttled@s3=often", "a rate is a number between 0 and 1"),
    ],
)
def test_a_mistyped_fault_is_told(
    text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--emails", "1", "--faults", text])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.replace("\n", " ")
