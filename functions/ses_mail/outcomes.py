"""Outcomes and named reasons: logs, records, metrics and people's searches must agree on them.

The reasons for which a bounce is suppressed are those of bounce_policy.py, and SENDER_LIMIT.
"""

# What became of a delivery: an iteration of the Map returns one, `Action result` logs one.
DELIVERED, BOUNCED, SUPPRESSED = "delivered", "bounced", "suppressed"
STORED, DROPPED = "stored", "dropped"
# In a dead-letter queue; or not even that, so that the sweeper has to park it.
DEAD_LETTERED, UNPARKED = "dead-lettered", "unparked"
# Of one attempt, which the state machine may repeat.
FAILED = "failed"

# What became of a message of the input queue.
STARTED, DUPLICATE, IGNORED, PARKED = "started", "duplicate", "ignored", "parked"

# What the state machine found by itself about an email; the last two need no rules.
SAFE, VIRUS, LOOP = "none", "virus", "loop"

# Why a recipient's decision is what it is, beside the kinds of match; and the rule in that case.
NO_RULE, REPLAYED = "no rule", "replayed to"
NO_MATCH = "none"

# Why a delivery ended without anything being sent: an earlier attempt had done it, or may have.
ALREADY_THERE, MAYBE_SENT, SENDER_LIMIT = "already-there", "maybe-sent", "sender-limit"
