"""Which parameters with Gmail credentials there are: names only, nothing is decrypted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ses_mail.credentials import parameter_name

from .session import Session

if TYPE_CHECKING:
    from mypy_boto3_ssm.type_defs import ParameterStringFilterTypeDef


@dataclass(frozen=True)
class Tokens:
    """The parameters' names; prefix is where those of single mailboxes are."""

    default: str
    prefix: str
    parameters: frozenset[str]

    @property
    def has_default(self) -> bool:
        return self.default in self.parameters

    def own(self, mailbox: str) -> str:
        """The name of a mailbox's own parameter, whether or not it exists."""
        return parameter_name(self.prefix, mailbox)

    def serve(self, mailbox: str) -> bool:
        """Whether any parameter could speak for it."""
        return self.has_default or self.own(mailbox) in self.parameters


def existing(session: Session) -> Tokens:
    """Raises ClientError, also for whoever may not list parameters."""
    default, prefix = session.default_token_parameter, session.mailbox_token_prefix
    pages = session.ssm.get_paginator("describe_parameters")
    filters: list[ParameterStringFilterTypeDef] = [
        {"Key": "Name", "Option": "Equals", "Values": [default]},
        {"Key": "Path", "Option": "OneLevel", "Values": [prefix.rstrip("/")]},
    ]
    found = (
        parameter["Name"]
        for wanted in filters
        for page in pages.paginate(ParameterFilters=[wanted])
        for parameter in page["Parameters"]
    )
    return Tokens(default, prefix, frozenset(found))
