"""A short soak; `make soak` runs a long one."""

import pytest

from local.faults import ERROR, Fault, Faults, decide
from local.soak import Soak, digest, make_emails, make_faults

SEED, EMAILS = 3, 60


@pytest.mark.slow
def test_every_email_is_accounted_for() -> None:
    emails = make_emails(SEED, EMAILS)
    soak = Soak(emails, Faults(SEED, make_faults(SEED, emails)), patience=45)
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
