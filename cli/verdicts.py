"""What SES found in an email, and what the state machine makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {"spam": "spam", "virus": "virus", "spf": "SPF", "dkim": "DKIM", "dmarc": "DMARC"}


def of(receipt: Mapping[str, Any]) -> dict[str, str]:
    """SES's verdicts under their kinds, those that it gave: `{"spam": "PASS", "dmarc": "FAIL"}`."""
    found = {kind: receipt.get(f"{kind}Verdict") for kind in _KINDS}
    return {kind: str(v["status"]) for kind, v in found.items() if isinstance(v, Mapping)}


def in_words(receipt: Mapping[str, Any]) -> str:
    """`spam PASS, virus PASS, SPF FAIL, DKIM PASS, DMARC FAIL (policy reject)`."""
    policy = f" (policy {receipt['dmarcPolicy']})" if receipt.get("dmarcPolicy") else ""
    words = [f"{_KINDS[kind]} {status}" for kind, status in of(receipt).items()]
    return ", ".join(words) + (policy if "dmarc" in of(receipt) else "") or "not known"


def is_virus(receipt: Mapping[str, Any]) -> bool:
    """Whether the state machine drops the email."""
    return of(receipt).get("virus") == "FAIL"


def why_spam(receipt: Mapping[str, Any]) -> str:
    """Why the state machine puts the email into the spam folder; empty if it does not.

    The words of `Safe to deliver?`, once more: tests/commands/test_replay.py sends an email for
    each combination and compares.
    """
    found = of(receipt)
    if found.get("spam") == "FAIL":
        return "SES's spam verdict is FAIL"
    if found.get("dmarc") == "FAIL" and receipt.get("dmarcPolicy") in ("quarantine", "reject"):
        return f"DMARC is FAIL, and the sender's domain asks for {receipt['dmarcPolicy']}"
    return ""
