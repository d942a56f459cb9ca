"""Mutants of Python: functions/, cli/ and the scripts of the runbooks' documents."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.mutation.source import GONE, ROOT, Mutant, Scalar, Span, Yaml, other_numbers

_DOCUMENTS = {
    "runbooks/dlq_redrive.yaml": "tests/runbooks/test_dlq_redrive.py",
    "runbooks/queue_health_check.yaml": "tests/runbooks/test_queue_health_check.py",
}
_CONSTANTS = "tests/template/test_constants.py"
# What the functions send to X-Ray, and the search for secrets.
_EDGE = (
    "tests/functions/test_traces.py",
    "tests/functions/test_log_context.py",
    "tests/workflow/test_secrets.py",
)
_FUNCTIONS = (
    *("bouncer", "fetcher", "gmail_forwarder", "router", "starter", "sweeper", "token_monitor"),
)
# What else could notice, for modules whose tests have other names.
_ALSO: dict[str, tuple[str, ...]] = {
    "observe": ("tests/functions", "tests/workflow/test_observability.py"),
    "deliveries": (
        "tests/unit/test_forward_records.py",
        "tests/unit/test_bounce_records.py",
        "tests/unit/test_bounce.py",
    ),
    "forward_records": ("tests/unit/test_deliveries.py", "tests/unit/test_forward.py"),
    "bounce_records": ("tests/unit/test_deliveries.py", "tests/unit/test_bounce.py"),
    "bounce_limit": ("tests/unit/test_bounce.py", "tests/functions/test_bouncer.py"),
    "forward": ("tests/functions/test_gmail_forwarder.py", "tests/workflow/test_deliveries.py"),
    "gmail": ("tests/unit/test_forward.py", "tests/functions/test_gmail_forwarder.py"),
    "google_errors": ("tests/unit/test_gmail.py", "tests/unit/test_monitor_tokens.py"),
    "credentials": ("tests/unit/test_forward.py", "tests/unit/test_monitor_tokens.py"),
    "bounce": ("tests/functions/test_bouncer.py", "tests/workflow/test_bounce_corpus.py"),
    "bounce_policy": ("tests/unit/test_bounce.py", "tests/workflow/test_bounce_corpus.py"),
    "headers": ("tests/unit/test_bounce_policy.py", "tests/functions/test_fetcher.py"),
    "stored_email": ("tests/unit/test_forward.py", "tests/functions/test_fetcher.py"),
    "fetch": ("tests/functions/test_fetcher.py",),
    "start": ("tests/functions/test_starter.py",),
    "notification": ("tests/functions/test_starter.py", "tests/functions/test_sweeper.py"),
    "dead_letters": (
        "tests/functions/test_starter.py",
        "tests/functions/test_sweeper.py",
        "tests/unit/test_notification.py",
    ),
    "sweep": ("tests/functions/test_sweeper.py",),
    "routing": ("tests/functions/test_router.py", "tests/unit/test_fuzz.py"),
    "route_table": ("tests/functions/test_router.py",),
    "monitor_tokens": ("tests/functions/test_token_monitor.py",),
    "tables": (
        "tests/unit/test_forward_records.py",
        "tests/unit/test_bounce_records.py",
        "tests/unit/test_deliveries.py",
        "tests/functions/test_sweeper.py",
    ),
    "addresses": ("tests/unit/test_routing.py", "tests/unit/test_fuzz.py"),
    "clients": ("tests/functions", "tests/workflow/test_secrets.py"),
    "clock": ("tests/functions/test_starter.py", "tests/unit/test_monitor_tokens.py"),
    "payloads": ("tests/functions", "tests/template/test_contract.py"),
    "outcomes": ("tests/functions",),
    "errors": ("tests/functions", "tests/template/test_contract.py"),
    "delivery_keys": ("tests/unit/test_deliveries.py", "tests/unit/test_bounce_records.py"),
    # The command line.
    "emails": ("tests/commands/test_find.py", "tests/commands/test_trace.py"),
    "letters": ("tests/commands/test_dlq.py",),
    "automation": ("tests/commands/test_documents.py", "tests/commands/test_dlq.py"),
    "replay_plan": ("tests/commands/test_replay.py",),
    "output": ("tests/commands/test_trace.py", "tests/commands/test_find.py"),
    "tokens": ("tests/unit/test_cli_token.py", "tests/commands/test_token.py"),
    "token": ("tests/unit/test_cli_token.py",),
    "rules": ("tests/commands/test_routes.py",),
    "rule_table": ("tests/commands/test_routes.py",),
    "rule_check": ("tests/commands/test_routes.py",),
    "refusals": ("tests/commands/test_main.py", "tests/commands/test_health.py"),
    "session": ("tests/commands/test_main.py",),
    "whereabouts": ("tests/commands/test_trace.py", "tests/commands/test_replay.py"),
    "verdicts": ("tests/commands/test_trace.py",),
    "hints": ("tests/commands/test_main.py", "tests/commands/test_replay.py"),
    "health": ("tests/commands/test_documents.py",),
}
_TURNED: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
}
_SIGNS = {"not in": r"not\s+in", "is not": r"is\s+not"}
_TABLE = {"deliveries", "forward_records", "bounce_records", "bounce_limit", "sweep"}
_TELLS = re.compile(r"^[\w.]*(?:append|count|log\w*\.\w+|add|update|issue|show\w*|print)\(")
# Their flags say what must never happen, and change nothing that does.
_FOR_THE_READER = {"dataclass", "zip"}
LOGGING = {"info", "warning", "error", "exception", "append_keys"}
COUNTING = {"count", "add_metric"}
# True would put what passes by into traces, logs or the text of an object.
_PRIVATE = {"capture_response", "capture_error", "auto_patch", "repr"}
# Conditions of DynamoDB in strings.
_CONDITION = re.compile(r"(?P<it>(?<=\w )(?:=|<)(?= :)|\bAND\b|\bOR\b|attribute_(?:not_)?exists)")
_IN_CONDITION = {
    "=": "<>",
    "<": ">",
    "AND": "OR",
    "OR": "AND",
    "attribute_not_exists": "attribute_exists",
    "attribute_exists": "attribute_not_exists",
}


class _Module:
    """A module with the position of everything in it; `indent` if it stands inside YAML."""

    def __init__(self, file: str, name: str, text: str, begin: int, indent: int) -> None:
        self.file = file
        self.name = name
        self.source = text
        self.tree = ast.parse(text)
        self._starts = []
        for line in text.splitlines(keepends=True):
            # A dedented empty line had no indentation to take away.
            self._starts.append((begin, indent if line.strip() else 0))
            begin += len(line) + (indent if line.strip() else 0)
        self._lines = text.splitlines()
        self._owners = sorted(
            (node.lineno, node.end_lineno or 0, node.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        )
        self.tests = tests_of(Path(file), name)

    def at(self, line: int, column: int) -> int:
        """The place in the file; ast's columns are bytes."""
        start, indent = self._starts[line - 1]
        before = self._lines[line - 1].encode()[:column].decode()
        return start + indent + len(before)

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> Span:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = self.at(node.lineno, node.col_offset)
        return begin, self.at(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.source, node) or ""

    def mutant(self, kind: str, line: int, what: str, span: Span, new: str) -> Mutant:
        inside = [name for begin, end, name in self._owners if begin <= line <= end]
        where = ".".join([self.file, *inside])
        related = kind == "number" and self.file.startswith("functions")
        tests = (_CONSTANTS, *self.tests) if related else self.tests
        if kind == "privacy" and self.file.startswith("functions"):
            tests = (*_EDGE, *self.tests)
        return Mutant(kind, f"{where} {what}", self.file, span, new, tests)

    def all(self) -> Iterator[Mutant]:
        yield from self._constants()
        # Before Python 3.12 the parts of an f-string have no places of their own.
        inside = {
            id(part)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(self.tree):
            if id(node) in inside:
                continue
            if isinstance(node, ast.ClassDef):
                yield from self._exit_code(node)
            if isinstance(node, ast.Compare):
                yield from self._comparison(node)
            elif isinstance(node, ast.BoolOp):
                yield from self._logic(node)
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                inner = self.text(node.operand)
                span = self.span(node)
                yield self.mutant("logic", node.lineno, f"not {inner[:60]}", span, f"({inner})")
            elif isinstance(node, ast.If | ast.IfExp | ast.While):
                if ast.unparse(node.test) != "TYPE_CHECKING":
                    yield from self._branch(node.test)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from self._condition(node)
            elif isinstance(node, ast.Dict) and self.file.startswith("functions"):
                yield from self._entries(node)
            for body in ("body", "orelse", "finalbody"):
                statements = getattr(node, body, None)
                if isinstance(statements, list):
                    yield from self._statements(statements)

    # -- constants ---------------------------------------------------------------------------------

    def _constants(self) -> Iterator[Mutant]:
        for statement in self.tree.body:
            value = getattr(statement, "value", None)
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or value is None:
                continue
            name = ast.unparse(getattr(statement, "target", None) or statement.targets[0])  # type: ignore[union-attr]
            if any(isinstance(node, ast.JoinedStr) for node in ast.walk(value)):
                continue
            for node in ast.walk(value):
                if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                    yield from self._number("number", node, name)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from self._word(node, name)

    def _number(self, kind: str, node: ast.Constant, name: str) -> Iterator[Mutant]:
        text = self.text(node)
        for new in other_numbers(text):
            what = f"{name} {node.col_offset} {text} as {new}"
            yield self.mutant(kind, node.lineno, what, self.span(node), new)

    def _word(self, node: ast.Constant, name: str) -> Iterator[Mutant]:
        """One of several words, or a setting."""
        text = self.text(node)
        if re.fullmatch(r"""["'][\w./:-]+["']""", text):
            begin, end = self.span(node)
            what = f"{name} {node.col_offset} {text}"
            yield self.mutant(
                "word", node.lineno, what, (begin, end), f"{text[:-1]}{GONE}{text[-1]}"
            )

    def _exit_code(self, node: ast.ClassDef) -> Iterator[Mutant]:
        for statement in node.body:
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Constant) and type(value.value) is int:
                for new in {"0", "1", "9"} - {str(value.value)}:
                    what = f"{value.value} as {new}"
                    yield self.mutant("exit code", value.lineno, what, self.span(value), new)

    # -- operators ---------------------------------------------------------------------------------

    def _comparison(self, node: ast.Compare) -> Iterator[Mutant]:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            begin, end = self.span(left)[1], self.span(right)[0]
            between = self._between(begin, end)
            for new in _TURNED[type(operator)]:
                old = {v: k for k, v in _AS_TEXT.items()}[type(operator)]
                match = re.search(_SIGNS.get(old, re.escape(old)), between)
                if match:
                    span = begin + match.start(), begin + match.end()
                    what = f"{ast.unparse(node)[:70]} {left.end_col_offset} {old} as {new}"
                    yield self.mutant("comparison", node.lineno, what, span, new)
            left = right

    def _between(self, begin: int, end: int) -> str:
        return (ROOT / self.file).read_text()[begin:end]

    def _logic(self, node: ast.BoolOp) -> Iterator[Mutant]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for number, (left, right) in enumerate(zip(node.values, node.values[1:], strict=False)):
            begin, end = self.span(left)[1], self.span(right)[0]
            match = re.search(rf"\b{old}\b", self._between(begin, end))
            if match:
                # Parentheses keep what it binds.
                span = begin + match.start(), begin + match.end()
                what = f"{ast.unparse(node)[:70]} {node.col_offset} {number} as {new}"
                yield self.mutant("logic", node.lineno, what, span, new)

    def _branch(self, test: ast.expr) -> Iterator[Mutant]:
        """What has no operator that could be turned."""
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
            what = f"if {ast.unparse(test)[:70]} {test.col_offset}"
            text = f"(not {self._between(*self.span(test))})"
            yield self.mutant("branch", test.lineno, what, self.span(test), text)
        elif isinstance(test, ast.NamedExpr):
            text = f"(not ({self._between(*self.span(test))}))"
            what = f"if {ast.unparse(test)[:70]}"
            yield self.mutant("branch", test.lineno, what, self.span(test), text)

    # -- calls -------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Iterator[Mutant]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        owner = ast.unparse(node.func).rpartition(".")[0]
        yield from self._removed(node)
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg in _PRIVATE and isinstance(value, ast.Constant) and value.value is False:
                yield self.mutant("privacy", node.lineno, keyword.arg, self.span(value), "True")
            elif name in _FOR_THE_READER:
                continue
            elif isinstance(value, ast.Constant) and isinstance(value.value, bool):
                what = f"{name} {keyword.arg} {value.col_offset}"
                new = str(not value.value)
                yield self.mutant("flag", value.lineno, what, self.span(value), new)
            elif isinstance(value, ast.Constant) and type(value.value) in (int, float):
                yield from self._number("number", value, f"{name} {keyword.arg}")
            if name in LOGGING and owner.endswith("logger") and keyword.arg:
                begin = self.span(keyword)[0] + len(keyword.arg)
                yield self.mutant("log field", keyword.lineno, keyword.arg, (begin, begin), GONE)
        if name in ("Exit", "exit"):
            for argument in node.args:
                what = f"{ast.unparse(argument)} as 0"
                yield self.mutant("exit code", node.lineno, what, self.span(argument), "0")
        if name in COUNTING:
            for inner in ast.walk(node.args[0]) if node.args else []:
                if isinstance(inner, ast.Constant) and str(inner.value)[:1].isupper():
                    yield self._longer("metric", inner)
        logged = name in LOGGING and owner.endswith("logger") and node.args
        if logged and isinstance(node.args[0], ast.Constant):
            yield self._longer("log field", node.args[0])

    def _longer(self, kind: str, node: ast.Constant) -> Mutant:
        """The text of a constant with more at its end, in an f-string too."""
        begin, end = self.span(node)
        if self._between(begin, end)[-1] in "\"'":
            end -= 1
        return self.mutant(kind, node.lineno, str(node.value), (end, end), GONE)

    # -- statements --------------------------------------------------------------------------------

    def _statements(self, statements: list[ast.stmt]) -> Iterator[Mutant]:
        """Each call for its effect left out, and two such calls in the other order."""
        before: ast.stmt | None = None
        for statement in statements:
            effect = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if effect:
                what = ast.unparse(statement)[:70]
                private = "clear_state" in what
                kind = "privacy" if private else "call"
                if not _is_for_people(statement.value):  # type: ignore[attr-defined]
                    yield self.mutant(kind, statement.lineno, what, self.span(statement), "pass")
                if before is not None:
                    yield self._swapped(before, statement)
            # The order of what only collects or tells means nothing.
            before = statement if effect and not _TELLS.search(ast.unparse(statement)) else None

    def _swapped(self, one: ast.stmt, other: ast.stmt) -> Mutant:
        begin, end = self.span(one)[0], self.span(other)[1]
        first, second = self._between(*self.span(one)), self._between(*self.span(other))
        between = self._between(self.span(one)[1], self.span(other)[0])
        new = f"{second}{between}{first}"
        what = f"{ast.unparse(other)[:50]} first"
        return self.mutant("sequence", one.lineno, what, (begin, end), new)

    # -- what is written -----------------------------------------------------------------------

    def _entries(self, node: ast.Dict) -> Iterator[Mutant]:
        """Each field of what is written, sent or answered left out."""
        kind = "deliveries" if self.name in _TABLE else "entry"
        if None in node.keys:
            return  # what is unpacked has brackets that have no place in the tree
        ends = [self.span(value)[1] for value in node.values]
        begins = [self.span(node)[0] + 1, *ends]
        for key, begin, end in zip(node.keys, begins, ends, strict=False):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                # With the comma before it, or the one after the first.
                first = begin == begins[0]
                comma = re.match(r"\s*,", self._between(end, self.span(node)[1])) if first else None
                span = begin, end + (comma.end() if comma else 0)
                what = f"{node.col_offset} without {key.value}"
                yield self.mutant(kind, key.lineno, what, span, "")

    def _removed(self, node: ast.Call) -> Iterator[Mutant]:
        """Each attribute that an update takes away."""
        for keyword in node.keywords:
            if keyword.arg == "remove" and isinstance(keyword.value, ast.List):
                for item in keyword.value.elts:
                    what = f"keeps {ast.unparse(item)}"
                    new = '"nothing"'
                    yield self.mutant("deliveries", item.lineno, what, self.span(item), new)

    def _condition(self, node: ast.Constant) -> Iterator[Mutant]:
        begin, end = self.span(node)
        text = self._between(begin, end)
        if text[:1] not in "\"'" or not re.search(r" = :|attribute_|lease_until [<>]", text):
            return
        for number, match in enumerate(_CONDITION.finditer(text)):
            new = _IN_CONDITION[match["it"]]
            span = begin + match.start("it"), begin + match.end("it")
            what = f"{node.col_offset} {number} {match['it']} as {new}"
            yield self.mutant("deliveries", node.lineno, what, span, new)


_AS_TEXT = {
    "==": ast.Eq,
    "!=": ast.NotEq,
    "<": ast.Lt,
    "<=": ast.LtE,
    ">": ast.Gt,
    ">=": ast.GtE,
    "in": ast.In,
    "not in": ast.NotIn,
    "is": ast.Is,
    "is not": ast.IsNot,
}


def _is_for_people(call: ast.expr) -> bool:
    """What is written for whoever looks on; what it says has tests where it matters."""
    return ast.unparse(call).startswith(("print(", "sys.stdout", "warnings."))


def tests_of(file: Path, name: str) -> tuple[str, ...]:
    if str(file) in _DOCUMENTS:
        return (_CONSTANTS, _DOCUMENTS[str(file)], "tests/runbooks/test_automation.py")
    own: tuple[str, ...] = (
        f"tests/unit/test_{name}.py",
        f"tests/unit/test_cli_{name}.py",
        f"tests/functions/test_{name}.py",
        f"tests/commands/test_{name}.py",
    )
    if file.parts[0] == "functions":
        own = (f"tests/unit/test_{name}.py", f"tests/functions/test_{name}.py")
    found = tuple(test for test in own if (ROOT / test).exists())
    found = tuple(dict.fromkeys((*found, *_ALSO.get(name, ()))))
    if file == Path("functions/starter.py") or name in ("observe", *_FUNCTIONS[:4]):
        found += ("tests/functions/test_traces.py",)
    return found or ("tests/functions" if file.parts[0] == "functions" else "tests/commands",)


def _scripts() -> Iterator[_Module]:
    for file in _DOCUMENTS:
        source = Yaml(file)
        for path, node in source.nodes():
            if path[-1:] == ("Script",) and isinstance(node, Scalar):
                whole = source.text_of(node)
                head, _, text = whole.partition("\n")
                dedented = textwrap.dedent(text)
                indent = len(text) - len(text.lstrip(" "))
                begin = node.start_mark.index + len(head) + 1
                yield _Module(file, Path(file).stem, dedented, begin, indent)


def _modules() -> Iterator[_Module]:
    for folder in ("functions", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT)
            yield _Module(str(file), path.stem, path.read_text(), 0, 0)


def mutants() -> Iterator[Mutant]:
    for module in (*_modules(), *_scripts()):
        yield from module.all()
