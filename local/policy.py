"""IAM policy documents, evaluated as AWS documents it; anything else that a document may say is an
error, so that nothing is taken for granted because nobody could read it.

Sources: IAM User Guide, "Policy evaluation logic", "IAM JSON policy elements: Condition operators",
"… Principal", "… Resource". Imports nothing of this project: the workers load it too.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Statement = Mapping[str, Any]

ELEMENTS = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}


@dataclass(frozen=True)
class Request:
    """Somebody who asks for something; `principal` is ("Service", "ses.amazonaws.com") or ("AWS",
    an ARN), the context's keys are condition keys such as `aws:SourceArn`."""

    principal: tuple[str, str]
    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def decide(statements: Iterable[Statement], request: Request) -> str | None:
    """ "Deny" if any statement denies, else "Allow" if any allows, else None (which denies too).

    Raises NotImplementedError for a statement that holds anything which is not evaluated here.
    """
    effects = {s["Effect"] for s in map(checked, statements) if applies(s, request)}
    return "Deny" if "Deny" in effects else "Allow" if effects else None


def checked(statement: Statement) -> Statement:
    """The statement, if all of it can be evaluated here."""
    if unknown := set(statement) - ELEMENTS:
        raise NotImplementedError(f"local/policy.py evaluates no {', '.join(sorted(unknown))}")
    if statement["Effect"] not in ("Allow", "Deny"):
        raise ValueError(f"Effect {statement['Effect']}")
    for operator, keys in statement.get("Condition", {}).items():
        _operator(operator)
        for values in keys.values():
            if any("${" in str(value) for value in _list(values)):
                raise NotImplementedError(f"local/policy.py knows no policy variables: {values}")
    return statement


def applies(statement: Statement, request: Request) -> bool:
    """Whether a statement is about the request. Without `Principal` it is of a role and speaks of
    whoever has that; without `Resource` it is of a role's trust."""
    return (
        _is_principal(statement.get("Principal", "*"), request.principal)
        and _any_like(_list(statement["Action"]), request.action, str.lower)
        and _any_like(_list(statement.get("Resource", "*")), request.resource, str)
        and all(
            _holds(operator, key, _list(values), request.context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _is_principal(element: Any, principal: tuple[str, str]) -> bool:
    if element == "*":
        return True
    kind, name = principal
    if unknown := set(element) - {"Service", "AWS"}:
        raise NotImplementedError(f"local/policy.py knows no principals {', '.join(unknown)}")
    given = _list(element.get(kind, []))
    if kind == "Service":
        return name in given
    account = name.split(":")[4]
    return bool({"*", name, account, f"arn:aws:iam::{account}:root"} & set(given))


def _any_like(patterns: Iterable[str], text: str, fold: Callable[[str], str]) -> bool:
    return any(_like(fold(pattern), fold(text)) for pattern in patterns)


def _like(pattern: str, text: str) -> bool:
    """`*` is any text, `?` any one character, and nothing else is special."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def _like_arn(pattern: str, text: str) -> bool:
    """Each of the six parts of an ARN by itself: a `*` does not reach over a colon before them."""
    wanted, given = pattern.split(":", 5), text.split(":", 5)
    return len(wanted) == len(given) == 6 and all(map(_like, wanted, given))


# What compares one value of the policy with the request's.
COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda wanted, given: wanted == given,
    "StringEqualsIgnoreCase": lambda wanted, given: wanted.lower() == given.lower(),
    "StringLike": _like,
    "ArnEquals": _like_arn,  # AWS: behaves identically to ArnLike
    "ArnLike": _like_arn,
    "Bool": lambda wanted, given: wanted.lower() == given.lower(),
}
NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
}
NULL = "Null"


def _operator(name: str) -> tuple[str, bool, bool]:
    """(comparison or "Null", whether it is negated, whether a missing key satisfies it)."""
    base = name.removesuffix("IfExists")
    comparison = NEGATED.get(base, base)
    if name != NULL and comparison not in COMPARISONS:
        raise NotImplementedError(f"local/policy.py evaluates no {name}")
    return comparison, base in NEGATED, base != name


def _holds(operator: str, key: str, values: Sequence[str], context: Mapping[str, str]) -> bool:
    comparison, negated, if_exists = _operator(operator)
    # Names of condition keys are the only ones in a condition whose case does not matter.
    given = {name.lower(): value for name, value in context.items()}.get(key.lower())
    if comparison == NULL:
        return (given is None) in {str(value).lower() == "true" for value in values}
    if given is None:
        return negated or if_exists
    compare = COMPARISONS[comparison]
    return any(compare(str(value), given) for value in values) is not negated


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
