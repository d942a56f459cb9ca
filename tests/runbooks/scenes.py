"""States of the cloud that a runbook's section assumes, and looks at what became of them."""

import itertools
import json
from typing import Any

from local.google import Fault

from .blocks import Ran
from .cases import World

ADDRESS = "support@example.com"
MAILBOX = "your-email@gmail.com"
_numbers = itertools.count(4711)


def send(world: World, recipient: str = ADDRESS, received: int = 0, **options: Any) -> str:
    """Send an email through to its end; its id becomes the shell's ID."""
    world.subject = f"Invoice {next(_numbers)}."
    raw = (
        "Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n" * received
        + f"From: Zoe <zoe@elsewhere.example>\r\nTo: {recipient}\r\n"
        + f"Subject: {world.subject}\r\n\r\nHello\r\n"
    )
    message_id = world.cloud.send(raw.encode(), world.post.sender(), [recipient], **options)
    world.cloud.wait_idle()
    world.variables["ID"] = message_id
    return message_id


def mailbox(world: World, address: str = MAILBOX) -> None:
    """A mailbox whose credentials are the default ones."""
    world.cloud.add_mailbox(address, default=True)


def rule(world: World) -> None:
    """A rule that forwards to a mailbox."""
    mailbox(world)
    world.cloud.put_rule(ADDRESS, "forward-to-gmail", MAILBOX)


def rejected(world: World) -> None:
    """A dead letter whose cause is over: Gmail refused the email once."""
    rule(world)
    world.cloud.google.faults.append(Fault(on="start", status=400, reason="invalid"))
    send(world)
    assert letters(world, "GmailForwarderDlq") == ["GmailRejectedError"]


def token_revoked(world: World) -> None:
    """A dead letter because of the token, and a new token in the current folder."""
    rule(world)
    world.cloud.google.revoke(MAILBOX)
    send(world)
    assert letters(world, "GmailForwarderDlq") == ["GmailTokenError"]
    new = world.cloud.google.add_mailbox(MAILBOX)
    (world.terminal.folder / "token.json").write_text(json.dumps(new))


def letters(world: World, queue: str) -> list[str]:
    """The error classes of the letters in a dead-letter queue."""
    return [body["failure"]["error"] for body in world.cloud.dead_letters(queue)]


def copies(world: World, address: str = MAILBOX) -> int:
    """How many copies of the email that was sent last lie in the mailbox."""
    messages = world.cloud.google.messages(address)
    return sum(world.subject.encode() in message.raw for message in messages)


def automation_succeeds(world: World, ran: Ran) -> dict[str, list[str]]:
    """Wait for the automation whose id the block printed; its outputs."""
    execution_id = json.loads(ran.out[: ran.out.index("}") + 1])["AutomationExecutionId"]
    ssm = world.cloud.client("ssm")
    found: dict[str, Any] = {}

    def ended() -> bool:
        nonlocal found
        found = ssm.get_automation_execution(AutomationExecutionId=execution_id)[
            "AutomationExecution"
        ]
        return found["AutomationExecutionStatus"] not in ("Pending", "InProgress")

    world.post.until(ended)
    assert found["AutomationExecutionStatus"] == "Success", found
    outputs: dict[str, list[str]] = found["Outputs"]
    return outputs
