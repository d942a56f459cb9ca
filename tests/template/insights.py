"""The part of the Logs Insights query language that our saved queries use, to run them for real.

After "CloudWatch Logs Insights query syntax", "Supported logs and discovered fields" and "Sample
queries" in the CloudWatch Logs User Guide. What those do not say is refused, so that no query rests
on it: unknown commands and functions, `and` beside `or` without parentheses, comparing by `!=` or
`<` with a field that is missing, sorting by anything but numbers or in no said direction.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Event = dict[str, Any]
Row = dict[str, Any]
Expression = Callable[[Event], Any]
Command = Callable[["Result"], "Result"]

_TOKEN = re.compile(
    r"""\s+
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<field>@?[A-Za-z_]\w*(?:\.\w+)*|`[^`]+`)
    | (?P<sign>=~|!=|<=|>=|[=<>()\[\],|*/+-])""",
    re.VERBOSE,
)
_REGEX = re.compile(r"\s*/((?:[^/\\\n]|\\.)+)/")
_COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "!=": operator.ne,
}
_ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_REPORT = {
    "@duration": r"\tDuration: ([\d.]+) ms",
    "@billedDuration": r"Billed Duration: ([\d.]+) ms",
    "@initDuration": r"Init Duration: ([\d.]+) ms",
    "@memorySize": r"Memory Size: (\d+) MB",
    "@maxMemoryUsed": r"Max Memory Used: (\d+) MB",
}
_WORDS = {"and", "or", "not", "in", "like", "as", "by", "asc", "desc"}


class QueryError(ValueError):
    """Not in the documents, or not in the part of them that is here."""


class Token(NamedTuple):
    kind: str  # text | number | field | sign | regex
    value: str


class Result(NamedTuple):
    """events pass from command to command; columns are what is shown of them, none yet = all."""

    events: list[Event]
    columns: tuple[str, ...] = ()


def event(group: str, stream: str, at: int, message: str, account: str = "123456789012") -> Event:
    """A log event with the fields that Logs Insights discovers in it; `at` in milliseconds."""
    fields: Event = {
        "@timestamp": at,
        "@message": message,
        "@log": f"{account}:{group}",
        "@logStream": stream,
    }
    if message.startswith("{"):
        fields |= dict(_flat(json.loads(message)))
    elif kind := re.match(r"(START|END|REPORT) RequestId: ", message):
        fields["@type"] = kind[1]
        for name, pattern in _REPORT.items():
            if found := re.search(pattern, message):
                # Memory is told in bytes: AWS's own sample divides it by 1000 twice.
                unit = 1_000_000 if "emory" in name else 1
                fields[name] = float(found[1]) * unit
    return fields


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """`recipients.0`, `details.error`: lists by position, objects by key."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value


def run(query: str, events: Iterable[Event]) -> list[Row]:
    """The rows that the query shows, in order."""
    text = "\n".join(line for line in query.splitlines() if not line.lstrip().startswith("#"))
    tokens = _tokens(text)
    commands: list[list[Token]] = [[]]
    for token in tokens:
        if token == Token("sign", "|"):
            commands.append([])
        else:
            commands[-1].append(token)
    result, done = Result(list(events)), set[str]()
    for command in commands:
        parser = _Parser(command)
        name = parser.take("field").value
        if name not in _COMMANDS:
            raise QueryError(f"no command {name!r}")
        if ("limit" in done and name != "display") or (name == "stats" and name in done):
            raise QueryError(f"{name} after {sorted(done)}")
        done.add(name)
        result = _COMMANDS[name](parser)(result)
    columns = result.columns or ("@timestamp", "@message")
    return [{column: event.get(column) for column in columns} for event in result.events]


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        if tokens and tokens[-1].value in ("like", "=~") and (found := _REGEX.match(text, at)):
            tokens.append(Token("regex", found[1]))
        elif not (found := _TOKEN.match(text, at)):
            raise QueryError(f"cannot read {text[at : at + 20]!r}")
        elif found.lastgroup:
            tokens.append(Token(found.lastgroup, found[0].strip("`") if found[0] else ""))
        at = found.end()
    return tokens


class _Parser:
    """One command's tokens, taken from the left."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)

    def next_is(self, *values: str) -> bool:
        return bool(self.tokens) and self.tokens[0].value in values

    def take(self, kind: str = "", *values: str) -> Token:
        if not self.tokens:
            raise QueryError(f"ends before {kind or values}")
        token = self.tokens.pop(0)
        if (kind and token.kind != kind) or (values and token.value not in values):
            raise QueryError(f"{token.value!r} in place of {values or kind}")
        return token

    def end(self) -> None:
        if self.tokens:
            raise QueryError(f"{self.tokens[0].value!r} too many")

    def listed(self, item: Callable[[], Any]) -> list[Any]:
        """item, item, …"""
        items = [item()]
        while self.next_is(","):
            self.take()
            items.append(item())
        return items

    # -- values

    def value(self) -> Expression:
        """Sums and products from the left, as far as parentheses leave no doubt."""
        left = self.operand()
        signs = set[str]()
        while self.next_is(*_ARITHMETIC):
            sign = self.take().value
            signs.add(sign)
            if len(signs) > 1:
                raise QueryError("different operations without parentheses")
            left = _both(_ARITHMETIC[sign], left, self.operand())
        return left

    def operand(self) -> Expression:
        token = self.take()
        if token.kind == "text":
            return lambda _: token.value[1:-1]
        if token.kind == "number":
            return lambda _: float(token.value)
        if token == Token("sign", "("):
            inner = self.value()
            self.take("sign", ")")
            return inner
        if token.kind != "field" or token.value in _WORDS:
            raise QueryError(f"{token.value!r} is no value")
        if self.next_is("("):
            return self.function(token.value)
        return lambda event: event.get(token.value)

    def function(self, name: str) -> Expression:
        self.take("sign", "(")
        arguments = self.listed(self.value)
        self.take("sign", ")")
        if name == "coalesce":
            return lambda event: next(
                (v for argument in arguments if (v := argument(event)) is not None), None
            )
        if name == "ispresent" and len(arguments) == 1:
            return lambda event: arguments[0](event) is not None
        raise QueryError(f"no function {name!r}")

    # -- conditions

    def condition(self) -> Expression:
        """Parts joined by `and`, or by `or`: which binds closer, nobody says."""
        parts, joints = [self.part()], set[str]()
        while self.next_is("and", "or"):
            joints.add(self.take().value)
            parts.append(self.part())
        if len(joints) > 1:
            raise QueryError("`and` beside `or` without parentheses")
        every = joints == {"and"}
        return lambda event: (all if every else any)(part(event) for part in parts)

    def part(self) -> Expression:
        if self.next_is("not"):
            self.take()
            inner = self.part()
            return lambda event: not inner(event)
        if self.next_is("("):
            self.take()
            inner = self.condition()
            self.take("sign", ")")
            return inner
        left = self.value()
        if not self.tokens or self.next_is("and", "or", ")"):
            return left  # ispresent(…)
        negated = self.next_is("not")
        if negated:
            self.take()
        sign = self.take().value
        if negated and sign not in ("in", "like"):
            raise QueryError(f"not {sign}")
        test = self.test(sign, left)
        return (lambda event: not test(event)) if negated else test

    def test(self, sign: str, left: Expression) -> Expression:
        if sign == "in":
            self.take("sign", "[")
            members = self.listed(self.value)
            self.take("sign", "]")
            return lambda event: any(_same(left(event), member(event)) for member in members)
        if sign in ("like", "=~"):
            token = self.take("regex" if sign == "=~" else "")
            if token.kind not in ("regex", "text"):
                raise QueryError(f"{sign} {token.value!r}")
            literal = token.kind == "text"
            pattern = re.compile(re.escape(token.value[1:-1]) if literal else token.value)
            return lambda event: bool(
                isinstance(left(event), str) and pattern.search(str(left(event)))
            )
        right = self.value()
        if sign == "=":
            return lambda event: _same(left(event), right(event))
        if sign in _COMPARISONS:
            return _both(_COMPARISONS[sign], left, right)
        raise QueryError(f"no comparison {sign!r}")

    # -- commands

    def named(self) -> tuple[str, Expression]:
        """value [as name]; a bare field keeps its own name, anything else needs one."""
        bare = self.tokens[0].value if self.tokens and self.tokens[0].kind == "field" else ""
        before = len(self.tokens)
        value = self.value()
        name = bare if before - len(self.tokens) == 1 else ""
        return self.alias(name), value

    def alias(self, name: str) -> str:
        if self.next_is("as"):
            self.take()
            return self.take("field").value
        if not name:
            raise QueryError("needs a name: as …")
        return name


def _both(operation: Callable[[Any, Any], Any], left: Expression, right: Expression) -> Expression:
    def both(event: Event) -> Any:
        a, b = left(event), right(event)
        if a is None or b is None:
            raise QueryError("what an operation does with a missing field is not documented")
        return operation(float(a), float(b))

    return both


def _same(a: Any, b: Any) -> bool:
    """A number in quotes is that number; a missing field is nothing."""
    if a is None or b is None:
        return False
    try:
        return float(a) == float(b)
    except ValueError:
        return str(a) == str(b)


def _fields(parser: _Parser) -> Command:
    named = parser.listed(parser.named)
    parser.end()

    def command(result: Result) -> Result:
        events = [
            {**event, **{name: value(event) for name, value in named}} for event in result.events
        ]
        return Result(events, (*result.columns, *(name for name, _ in named)))

    return command


def _display(parser: _Parser) -> Command:
    columns = tuple(parser.listed(lambda: parser.take("field").value))
    parser.end()
    return lambda result: Result(result.events, columns)


def _filter(parser: _Parser) -> Command:
    condition = parser.condition()
    parser.end()
    return lambda result: Result(
        [event for event in result.events if condition(event)], result.columns
    )


def _sort(parser: _Parser) -> Command:
    field = parser.take("field").value
    descending = parser.take("field", "asc", "desc").value == "desc"
    parser.end()

    def command(result: Result) -> Result:
        if not all(isinstance(event.get(field), int | float) for event in result.events):
            raise QueryError(f"sort by {field}, which is not a number everywhere")
        events = sorted(result.events, key=lambda event: event[field], reverse=descending)
        return Result(events, result.columns)

    return command


def _limit(parser: _Parser) -> Command:
    number = int(parser.take("number").value)
    parser.end()
    if not 1 <= number <= 10_000:
        raise QueryError(f"limit {number}")
    return lambda result: Result(result.events[:number], result.columns)


_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "sum": sum,
    "avg": lambda values: sum(values) / len(values),
    "min": min,
    "max": max,
}


def _aggregate(parser: _Parser) -> tuple[str, Callable[[list[Event]], Any]]:
    function = parser.take("field").value
    parser.take("sign", "(")
    if function == "count" and parser.next_is("*"):
        parser.take()
        parser.take("sign", ")")
        return parser.alias(""), len
    value = parser.value()
    share = 1.0
    if function == "pct":
        parser.take("sign", ",")
        share = float(parser.take("number").value) / 100
    parser.take("sign", ")")

    def aggregate(events: list[Event]) -> Any:
        there = [event for event in events if event.keys() and _is_there(value, event)]
        values = [value(event) for event in there]
        if function == "count":
            return len(values)
        if not values:
            return None
        if function == "pct":
            return sorted(values)[math.ceil(len(values) * share) - 1]
        if function == "latest":
            return value(max(there, key=lambda event: event["@timestamp"]))
        return _AGGREGATES[function](values)

    if function not in {*_AGGREGATES, "count", "pct", "latest"}:
        raise QueryError(f"no function {function!r} in stats")
    return parser.alias(""), aggregate


def _is_there(value: Expression, event: Event) -> bool:
    try:
        return value(event) is not None
    except QueryError:
        return False


def _stats(parser: _Parser) -> Command:
    aggregates = parser.listed(lambda: _aggregate(parser))
    groups: list[tuple[str, Expression]] = []
    if parser.next_is("by"):
        parser.take()
        groups = parser.listed(parser.named)
    parser.end()

    def command(result: Result) -> Result:
        grouped: dict[tuple[Any, ...], list[Event]] = {}
        for event in result.events:
            grouped.setdefault(tuple(value(event) for _, value in groups), []).append(event)
        rows = [
            {
                **dict(zip((name for name, _ in groups), key, strict=True)),
                **{name: aggregate(events) for name, aggregate in aggregates},
            }
            for key, events in grouped.items()
        ]
        return Result(rows, tuple(name for name, _ in [*groups, *aggregates]))

    return command


_COMMANDS: Mapping[str, Callable[[_Parser], Command]] = {
    "fields": _fields,
    "display": _display,
    "filter": _filter,
    "stats": _stats,
    "sort": _sort,
    "limit": _limit,
}
