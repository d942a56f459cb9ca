"""Every error that the state machine reacts to: one class per reaction, flat.

    class                      raised by          reaction in process_email.asl.yaml
    InvalidNotificationError   starter, fetcher   input DLQ
    EmailNotFoundError         fetcher, bouncer   input DLQ, bouncer DLQ
    InvalidRoutingRuleError    router (as data)   those recipients to the input DLQ
    GmailTokenError            forwarder          forwarder DLQ, alarm
    GmailRejectedError         forwarder          forwarder DLQ
    GmailTemporaryError        forwarder          retried for about a day
    DeliveryInProgressError    forwarder, bouncer retried until the other's lease has run out
    BounceRejectedError        bouncer            bouncer DLQ
    BounceThrottledError       bouncer            retried for at most 20 h

Step Functions matches the exact class name, and executions outlive deployments: never rename one.
"""

CAUSE_LENGTH = 1000


def printable(text: str) -> str:
    """The text cut to CAUSE_LENGTH, without what SQS or a terminal would choke on."""
    cut = text[:CAUSE_LENGTH].encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in cut)


class _FlatError(Exception):
    """Carries a message for the operator and the code that an operator would search for."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(printable(message))
        self.code = code or type(self).__name__


class InvalidNotificationError(_FlatError):
    """Not a notification of an email that SES stored in our bucket; retrying cannot help."""


class EmailNotFoundError(_FlatError):
    """The bucket holds no object under the notification's key."""


class InvalidRoutingRuleError(_FlatError):
    """A routing rule that cannot be obeyed: unknown action, or forward without a valid target."""


class GmailTokenError(_FlatError):
    """Google will not let us act for the mailbox until somebody fixes its credentials."""


class GmailRejectedError(_FlatError):
    """Gmail refuses this very email, now and later."""


class GmailTemporaryError(_FlatError):
    """Gmail or the way to it is out of order; later attempts may succeed."""


class DeliveryInProgressError(_FlatError):
    """Another attempt holds the lease of this delivery."""


class BounceRejectedError(_FlatError):
    """SES refuses to send this bounce."""


class BounceThrottledError(_FlatError):
    """SES asks for a slower pace (one SendBounce per second)."""
