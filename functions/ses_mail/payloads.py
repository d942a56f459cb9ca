"""What travels as JSON between starter, states of the state machine, functions and queues.

What is NotRequired may be absent: SES does not always send it, or an execution of the last release
does not know it. Times are RFC 3339 in UTC unless a field says otherwise. Nobody validates at run
time but the starter (notification.py); tests compare these shapes with the state machine's file and
with events/*.json.
"""

from typing import Literal, NotRequired, TypedDict


class Mail(TypedDict):
    """Of SES's `mail`, what the workflow needs."""

    messageId: str  # SES's id of the email: [0-9A-Za-z_-], at most 64 characters
    source: str  # envelope sender (MAIL FROM); empty for the null sender
    timestamp: NotRequired[str]  # when SES received the email


class Verdict(TypedDict):
    """One of SES's checks."""

    status: str  # PASS, FAIL, GRAY, PROCESSING_FAILED or DISABLED


class S3Action(TypedDict):
    """Where SES's receipt rule has put the email."""

    type: str  # S3
    bucketName: str
    objectKey: str  # emails/{messageId}


class Receipt(TypedDict):
    """Of SES's `receipt`, what the workflow needs."""

    timestamp: NotRequired[str]  # when the receipt rule's actions ran
    recipients: list[str]  # envelope recipients that matched this receipt rule; at least one
    spamVerdict: NotRequired[Verdict]
    virusVerdict: NotRequired[Verdict]
    spfVerdict: NotRequired[Verdict]
    dkimVerdict: NotRequired[Verdict]
    dmarcVerdict: NotRequired[Verdict]
    dmarcPolicy: NotRequired[str]  # none, quarantine or reject; only with a DMARC FAIL
    action: S3Action


class Redrive(TypedDict):
    """What an email is sent through once more for; fields that no release knows are kept."""

    attempt: int  # 1 for the first redrive
    recipients: list[str]  # some of the receipt's; at least one
    ignoreVerdicts: NotRequired[bool]  # deliver although SES found it spam or a virus
    force: NotRequired[str]  # nonce: deliver again what was delivered
    to: NotRequired[str]  # a mailbox in place of what the rules say


class Failure(TypedDict):
    """Why a message lies in a dead-letter queue."""

    # The step that failed: start, fetch, route, forward-to-gmail, bounce or execution
    action: str
    target: NotRequired[str]  # the mailbox; empty unless it was to be forwarded
    matchedRule: NotRequired[str]  # patterns of the routing rules, `, ` between them
    recipients: NotRequired[list[str]]  # those who have not got the email
    error: str  # name of an error class (errors.py) or Step Functions' own
    cause: str  # the error's text, at most 1,000 characters
    executionArn: NotRequired[str]  # the execution that failed
    at: str


class DeadLetter(TypedDict):
    """A message of a dead-letter queue, which can be sent back to the input queue as it is."""

    mail: Mail
    receipt: Receipt
    redrive: Redrive  # of the execution that it will start
    failure: Failure


class ParkedMessage(TypedDict):
    """A message of the input dead-letter queue that is not an email to anybody who reads it."""

    original: str  # the message as it came
    failure: Failure


class QueuedMessage(TypedDict):
    """Of a message that the pipe hands to the starter, what the starter reads."""

    messageId: str  # SQS's id
    body: str


class FailedItem(TypedDict):
    """A message that the pipe must bring again."""

    itemIdentifier: str  # SQS's id


class StarterResult(TypedDict):
    """What the pipe reads of the starter's answer."""

    batchItemFailures: list[FailedItem]


class SweeperResult(TypedDict):
    """What the sweeper answers to whoever invokes it by hand."""

    swept: list[str]  # ARNs of executions whose email it parked


class TokenMonitorResult(TypedDict):
    """What the token monitor answers to whoever invokes it by hand."""

    checked: dict[str, str]  # parameter → valid, invalid or unknown
    automation: str  # id of the redrive that was started, or empty


class ExecutionInput(TypedDict):
    """Input of an execution, written by the starter."""

    mail: Mail
    receipt: Receipt
    redrive: NotRequired[Redrive]


class FetcherPayload(TypedDict):
    """Of `Fetch email`."""

    messageId: str
    executionArn: str
    action: S3Action


class Email(TypedDict):
    """Result of `Fetch email`: where the email lies, and what was counted in it."""

    bucket: str
    key: str
    size: int  # bytes
    etag: str  # S3's, with its quotation marks
    received: int  # number of Received lines


class RouterPayload(TypedDict):
    """Of `Look up routes`."""

    messageId: str
    executionArn: str
    recipients: list[str]
    verdict: str  # outcomes.SAFE, VIRUS or LOOP
    to: NotRequired[str]  # redrive.to, or empty


class CaughtError(TypedDict):
    """An error as Step Functions writes it."""

    Error: str  # name of its class
    Cause: str  # its text, at most 1,000 characters


class DeliveryItem(TypedDict):
    """An item of `For each delivery`: recipients who are served together."""

    action: str  # routing.FORWARD, BOUNCE, STORE, DROP or PARK
    target: str  # the mailbox; empty unless it is forwarded
    recipients: list[str]
    matchedRule: str  # patterns of the routing rules, `, ` between them
    reason: str
    failure: NotRequired[CaughtError]  # only if it is to be parked


class RouterResult(TypedDict):
    """Result of `Look up routes`."""

    deliveries: list[DeliveryItem]  # at most 101, in the order in which they are made


class ForwarderPayload(TypedDict):
    """Of `Forward to Gmail`."""

    messageId: str
    executionArn: str
    delivery: DeliveryItem
    email: Email
    labels: list[str]  # Gmail's: INBOX and UNREAD, or SPAM
    receivedAt: NotRequired[str]  # when SES received the email, or empty
    force: NotRequired[str]  # redrive.force, or empty


class BouncerPayload(TypedDict):
    """Of `Send bounce`."""

    messageId: str
    executionArn: str
    delivery: DeliveryItem
    email: Email
    source: str  # envelope sender; empty for the null sender
    receipt: Receipt
    receivedAt: NotRequired[str]  # when SES received the email, or empty
    force: NotRequired[str]  # redrive.force, or empty


class DeliveryResult(TypedDict):
    """Result of `Forward to Gmail` and `Send bounce`."""

    outcome: str  # outcomes.DELIVERED, BOUNCED or SUPPRESSED
    resultId: str  # Gmail's or SES's id of what was sent, or empty
    reason: str  # a named reason, or empty


class IterationOutcome(TypedDict):
    """What an iteration of `For each delivery` returns."""

    action: str
    recipients: list[str]
    outcome: str  # outcomes.*
    error: NotRequired[str]  # only if it was dead-lettered or stayed unparked


class RoutingItem(TypedDict):
    """A rule in the routing table, as we write it; others may write anything."""

    PK: str  # ROUTE#{pattern}
    SK: Literal["RULE#v1"]
    entity_type: str
    recipient: str  # the pattern again, for people
    action: str  # routing.FORWARD, BOUNCE, STORE or DROP
    target: str | list[str]  # where it forwards to: one address or a list; else empty
    enabled: bool
    created_at: str
    updated_at: str
    description: str
