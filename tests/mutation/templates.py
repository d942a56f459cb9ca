"""Mutants of template.yaml and monitoring.yaml."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from tests.mutation.source import (
    GONE,
    Change,
    Mapping,
    Mutant,
    Node,
    Path_,
    Scalar,
    Sequence,
    Yaml,
    entry,
    other_numbers,
    scalars,
)

FILES = ("template.yaml", "monitoring.yaml")

_T = "tests/template/test_"
# What notices most of a kind comes first; the rest of what could notice after it.
_OF_KIND = {
    "policy": ("policies", "contract", "template", "monitoring", "design"),
    "permission": ("policies", "contract", "template", "monitoring"),
    "swapped": ("policies", "design", "contract", "template", "order", "monitoring"),
    "order": ("order", "design", "monitoring"),
    "query": ("insights", "monitoring"),
}
_OTHERS = ("design", "template", "contract", "order", "policies", "monitoring")
# Over a night's real logs and metrics; it takes a minute.
_NIGHT = "tests/workflow/test_operators_view.py"
_ALARMS = (f"{_T}monitoring.py", f"{_T}alarms.py")


# What AWS itself requires; ten seconds, so last.
_LINTERS = f"{_T}template.py::test_linters_are_silent"


def _tests(file: str, kind: str) -> tuple[str, ...]:
    own = _own_tests(file, kind)
    return (*own, _LINTERS) if kind in ("property", "item", "word") else own


def _own_tests(file: str, kind: str) -> tuple[str, ...]:
    if file == "monitoring.yaml":
        if kind in ("policy", "permission", "condition", "swapped"):
            return (f"{_T}policies.py", *_ALARMS)
        return _ALARMS if kind not in ("query", "dashboard") else (_ALARMS[0], _NIGHT)
    return tuple(f"{_T}{name}.py" for name in _OF_KIND.get(kind, _OTHERS))


# Another word that CloudFormation takes as well.
_WORDS = {
    "Active": "PassThrough",
    "Allow": "Deny",
    "Average": "Maximum",
    "Delete": "Retain",
    "Deny": "Allow",
    "ERROR": "ALL",
    "Enabled": "Disabled",
    "GreaterThanOrEqualToThreshold": "GreaterThanThreshold",
    "GreaterThanThreshold": "GreaterThanOrEqualToThreshold",
    "INFO": "ERROR",
    "LessThanThreshold": "LessThanOrEqualToThreshold",
    "Maximum": "Minimum",
    "Minimum": "Maximum",
    "NewVersion": "Replace",
    "Optional": "Require",
    "PAY_PER_REQUEST": "PROVISIONED",
    "REQUEST_RESPONSE": "FIRE_AND_FORGET",
    "Retain": "Delete",
    "RetainExceptOnCreate": "Delete",
    "STANDARD": "EXPRESS",
    "Sum": "Average",
    "breaching": "notBreaching",
    "denyAll": "allowAll",
    "false": "true",
    "notBreaching": "breaching",
    "true": "false",
}
# Told apart by nothing but a comment, a name for people, or a file that another test reads.
_NO_PROPERTY = ("Description", "AlarmDescription", "Comment", "Metadata", "Sid", "PolicyName")
# Compared as a whole by the policies' cases.
_IN_POLICIES = ("PolicyDocument", "AssumeRolePolicyDocument")
# Only the resource's own entry: what lies inside has kinds of its own.
_TEXTS = ("DashboardBody", "QueryString")


class _Template:
    def __init__(self, file: str) -> None:
        self.source = Yaml(file)
        self.file = file
        self.types: dict[str, str] = {}
        resources = entry(self.source.root, "Resources")
        assert isinstance(resources, Mapping)
        for key, value in resources.value:
            self.types[key.value] = getattr(entry(value, "Type"), "value", "")
        self.of_type: dict[str, list[str]] = defaultdict(list)
        for name, type_ in self.types.items():
            self.of_type[type_].append(name)

    def mutant(self, kind: str, path: Path_, what: str, change: Change) -> Mutant:
        where = ".".join(path[1:])
        return Mutant(
            kind, f"{self.file}: {where} {what}", self.file, *change, _tests(self.file, kind)
        )

    def all(self) -> Iterator[Mutant]:
        for path, node in self.source.nodes():
            if isinstance(node, Mapping):
                yield from self._statement(path, node)
                yield from self._known(path, node)
                yield from self._without(path, node)
            elif isinstance(node, Sequence):
                yield from self._items(path, node)
            elif isinstance(node, Scalar):
                yield from self._scalar(path, node)

    # -- policies ----------------------------------------------------------------------------------

    def _statement(self, path: Path_, statement: Mapping) -> Iterator[Mutant]:
        if not entry(statement, "Effect"):
            return
        actions = entry(statement, "Action")
        for action in scalars(actions):
            yield self.mutant("permission", path, action.value, self.source.renamed(action))
            service = action.value.partition(":")[0]
            for wide in {f"{service}:*", '"*"'} - {action.value}:
                change = self.source.replaced(action, wide)
                yield self.mutant("policy", path, f"{action.value} as {wide}", change)
        principal = entry(statement, "Principal")
        if isinstance(principal, Mapping):
            change = self.source.replaced(principal, '{AWS: "*"}')
            yield self.mutant("policy", path, "any account", change)
            for service in (value for _, value in principal.value):
                change = self.source.renamed(service)
                yield self.mutant("policy", path, "another service", change)
        elif principal:
            change = self.source.replaced(principal, "{Service: ses.amazonaws.com}")
            yield self.mutant("policy", path, "one service only", change)
        resource = entry(statement, "Resource")
        if resource and getattr(resource, "value", "") != "*":
            # It stands behind Resource:, or on lines of its own.
            yield self.mutant("policy", path, "any resource", self._whole(statement, "Resource"))
        condition = entry(statement, "Condition")
        if isinstance(condition, Mapping):
            change = self.source.without_entry(statement, "Condition")
            yield self.mutant("condition", path, "Condition", change)
            for operator, keys in condition.value:
                for key, _ in keys.value:
                    change = self.source.without_entry(keys, key.value)
                    if len(keys.value) > 1:
                        yield self.mutant("condition", path, f"without {key.value}", change)
                    begin = key.start_mark.index
                    change = (begin, key.end_mark.index), f"{key.value}{GONE}"
                    yield self.mutant("condition", path, f"another {key.value}", change)
                if_exists = (operator.end_mark.index, operator.end_mark.index), "IfExists"
                yield self.mutant("condition", path, f"{operator.value}IfExists", if_exists)

    def _whole(self, mapping: Mapping, name: str) -> Change:
        (begin, end), _ = self.source.without_entry(mapping, name)
        rest = self.source.text[begin:end]
        tail = rest[len(rest.rstrip()) :]
        return (begin, end), f'{name}: "*"{tail}'

    # -- names, metrics, alarms, texts -------------------------------------------------------------

    def _known(self, path: Path_, mapping: Mapping) -> Iterator[Mutant]:
        if path[:1] == ("Resources",) and path[2:] == ("Properties",):
            for key, value in mapping.value:
                if key.value.endswith("Name") and _is_name(value):
                    yield self.mutant("name", path, key.value, self.source.renamed(value))
        if path == ("Resources",):
            for name, kind in self.types.items():
                if kind == "AWS::CloudWatch::Alarm":
                    change = self.source.without_entry(mapping, name)
                    yield self.mutant("alarm", (*path, name), "removed", change)
        metric = entry(mapping, "MetricName")
        if metric is not None:
            yield self.mutant("metric", path, metric.value, self.source.renamed(metric))
        for key in _TEXTS:
            body = entry(mapping, key)
            if body is not None:
                yield from self._text(path, key, body)

    def _text(self, path: Path_, key: str, body: Node) -> Iterator[Mutant]:
        text = self.source.text_of(body)
        kinds = _IN_DASHBOARD if key == "DashboardBody" else _IN_QUERY
        for kind, pattern, others in kinds:
            for number, match in enumerate(re.finditer(pattern, text)):
                old = match["it"]
                for new in others(old):
                    begin = body.start_mark.index + match.start("it")
                    change = (begin, begin + len(old)), new
                    what = f"{key} {number} {old!r} as {new!r}"
                    yield self.mutant(kind, path, what, change)

    # -- everything else ---------------------------------------------------------------------------

    def _without(self, path: Path_, mapping: Mapping) -> Iterator[Mutant]:
        """Each entry removed of a resource, or of what stands in its properties."""
        inside = path[:1] == ("Resources",) and len(path) >= 2 and not _in_policy(path)
        if not inside or entry(mapping, "Effect") or path[-1] == "Metadata":
            return
        for key, value in mapping.value:
            name = str(key.value)
            skipped = (*_NO_PROPERTY, *_IN_POLICIES, *_TEXTS, "Type", "Properties")
            needed = (len(path) > 2 and isinstance(value, Mapping)) or name.startswith("Fn::")
            if name in skipped or needed:
                continue
            kind = _KIND_OF_ENTRY.get(name, "event" if "Events" in path else "property")
            change = self.source.without_entry(mapping, name)
            yield self.mutant(kind, path, f"without {name}", change)

    def _items(self, path: Path_, sequence: Sequence) -> Iterator[Mutant]:
        if path[:1] not in (("Resources",), ("Parameters",)) or "Fn::Sub" in path:
            return
        if sequence.tag.lower() not in ("tag:yaml.org,2002:seq",):
            return  # the arguments of a function
        if path[-1] in ("Layers",) and path[0] == "Globals":
            return
        for index, item in enumerate(sequence.value):
            statement = entry(item, "Effect")
            kind = "policy" if statement or _in_policy(path) else "item"
            kind = "order" if path[-1] == "DependsOn" else kind
            kind = "event" if "Events" in path else kind
            kind = "default" if path[0] == "Parameters" else kind
            named = self.source.text_of(item).strip().splitlines()[0][:50]
            change = self.source.without_item(sequence, index)
            yield self.mutant(kind, path, f"without {index} {named}", change)
        if "Pattern" in path:
            last = sequence.value[-1]
            if sequence.flow_style:
                change = (last.end_mark.index, last.end_mark.index), ", anything"
                yield self.mutant("event", path, "and anything", change)

    def _scalar(self, path: Path_, scalar: Scalar) -> Iterator[Mutant]:
        text = self.source.text_of(scalar).strip()
        if any(key in path for key in (*_NO_PROPERTY, *_TEXTS)) or path[-1] in _TEXTS:
            return
        yield from self._reference(path, scalar, text)
        if path[:1] == ("Parameters",):
            yield from self._parameter(path, scalar, text)
        elif path[:1] in (("Resources",), ("Globals",)):
            plain = text.strip("\"'")
            if scalar.tag.startswith("!"):
                return
            if plain == "rate(1 hour)":
                for rate in ("rate(1 day)", "rate(1 minute)", "rate(2 hours)"):
                    change = self.source.replaced(scalar, rate)
                    yield self.mutant("event", path, f"as {rate}", change)
            elif re.fullmatch(r"\d+", plain) and path[-1] != "Version":
                for number in other_numbers(plain):
                    change = self.source.replaced(scalar, text.replace(plain, number))
                    yield self.mutant("number", path, f"{plain} as {number}", change)
            elif plain in _WORDS:
                kind = "policy" if path[-1] == "Effect" else "word"
                kind = "life cycle" if path[-1] in _KIND_OF_ENTRY else kind
                change = self.source.replaced(scalar, text.replace(plain, _WORDS[plain]))
                yield self.mutant(kind, path, f"{plain} as {_WORDS[plain]}", change)
            elif path[-1] == "Expression" and re.search(r" [-+*/] ", plain):
                for number, match in enumerate(re.finditer(r" ([-+*/]) ", text)):
                    begin = scalar.start_mark.index + match.start(1)
                    new = "-" if match[1] == "+" else "+"
                    change = (begin, begin + 1), new
                    yield self.mutant("word", path, f"{number} {match[1]} as {new}", change)
            elif path[-1] in ("Prefix", "ObjectKeyPrefix"):
                yield self.mutant("life cycle", path, "another", self.source.renamed(scalar))

    def _reference(self, path: Path_, scalar: Scalar, text: str) -> Iterator[Mutant]:
        """A reference to another resource of the same type."""
        if scalar.tag not in ("!Ref", "!GetAtt"):
            return
        name, dot, attribute = scalar.value.partition(".")
        same = self.of_type.get(self.types.get(name, ""), [])
        if len(same) < 2:
            return
        kind = "policy" if _in_policy(path) else "swapped"
        kind = "output" if path[0] == "Outputs" else kind
        other = same[(same.index(name) + 1) % len(same)]
        change = self.source.replaced(scalar, f"{scalar.tag} {other}{dot}{attribute}")
        yield self.mutant(kind, path, f"{name} as {other}", change)

    def _parameter(self, path: Path_, scalar: Scalar, text: str) -> Iterator[Mutant]:
        what = path[-1]
        if what in ("Default", "MinValue"):
            plain = text.strip("\"'")
            if plain.isdigit():
                for number in other_numbers(plain):
                    change = self.source.replaced(scalar, text.replace(plain, number))
                    yield self.mutant("default", path, f"{plain} as {number}", change)
            else:
                yield self.mutant("default", path, "renamed", self.source.renamed(scalar))
        elif what == "AllowedPattern":
            yield self.mutant("default", path, "anything", self.source.replaced(scalar, "^.*$"))


_KIND_OF_ENTRY = {
    "DeletionPolicy": "life cycle",
    "UpdateReplacePolicy": "life cycle",
    "LifecycleConfiguration": "life cycle",
    "Status": "life cycle",
    "Prefix": "life cycle",
    "ExpirationInDays": "life cycle",
    "DaysAfterInitiation": "life cycle",
    "RetentionInDays": "life cycle",
    "MessageRetentionPeriod": "life cycle",
    "DependsOn": "order",
    "Condition": "item",
}


def _in_policy(path: Path_) -> bool:
    return any(key in path for key in _IN_POLICIES)


def _is_name(node: Node) -> bool:
    """Whether it is given here: not a reference to another resource's name."""
    return isinstance(node, Scalar) and node.tag not in ("!Ref", "!GetAtt")


def _longer(text: str) -> list[str]:
    return [f"{text}{GONE}"]


def _statistic(text: str) -> list[str]:
    return [_WORDS.get(text, "Minimum")]


def _sign(text: str) -> list[str]:
    return ["-" if text == "+" else "+"]


def _turned(text: str) -> list[str]:
    return [{"and": "or", "or": "and", "asc": "desc", "desc": "asc", "=": "!=", "!=": "="}[text]]


# Metrics stand in a dashboard as ["Namespace", "Metric", …]; fields in a query as bare words.
_IN_DASHBOARD = (
    ("metric", r'\[\s*"(?:AWS/|SESMail/)[^"]+",\s*"(?P<it>\w+)"', _longer),
    ("dashboard", r'"stat": "(?P<it>\w+)"', _statistic),
    ("dashboard", r'"period": (?P<it>\d+)', other_numbers),
    ("dashboard", r'"expression": "\w+ (?P<it>[-+]) \w+"', _sign),
    ("dashboard", r'"id": "(?P<it>\w+)"', _longer),
    ("dashboard", r"ses-[a-z-]+(?P<it>)-\$\{Environment\}", lambda text: ["-2"]),
    ("dashboard", r'\\"(?P<it>\w[\w ]*)\\"', _longer),
    ("dashboard", r"(?:by|sort) (?P<it>\w+)", _longer),
    ("dashboard", r" (?P<it>and|desc) ", _turned),
)
_IN_QUERY = (
    ("log field", r"(?<![\w@/\"'.$-])(?P<it>[a-z]+[A-Z]\w*)(?![\w(])", _longer),
    ("query", r"[ (](?P<it>and|or|asc|desc)\b", _turned),
    ("query", r"(?<![!<>])(?P<it>=)(?!~)", _turned),
    ("query", r'"(?P<it>\w[\w ]*)"', _longer),
    ("query", r"limit (?P<it>\d+)", lambda text: ["1"]),
    ("query", r"(?:sort|by|as|fields) (?P<it>@?\w+)", _longer),
    ("query", r"(?P<it>count|min|max|avg|latest)\(", lambda t: ["max" if t != "max" else "min"]),
    ("query", r"pct\(@\w+, (?P<it>\d+)", lambda text: ["5"]),
    ("query", r"(?P<it>\| filter)", lambda text: ["| filter not"]),
)


def mutants() -> Iterator[Mutant]:
    for file in FILES:
        yield from _Template(file).all()
