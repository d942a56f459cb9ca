"""What template, state machine, code and events promise each other, as checks on a `Project`.

A check takes a project and returns its problems as sentences; none means that the promise holds.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import yaml
from botocore import xform_name
from samtranslator.yaml_helper import yaml_parse

from local.stack import translated

ASL = "statemachines/process_email.asl.yaml"
FUNCTIONS = {
    "StarterFunction": "starter",
    "FetcherFunction": "fetcher",
    "RouterFunction": "router",
    "GmailForwarderFunction": "gmail_forwarder",
    "BouncerFunction": "bouncer",
    "SweeperFunction": "sweeper",
    "TokenMonitorFunction": "token_monitor",
}
DOCUMENTS = {
    "DlqRedriveDocument": "dlq_redrive",
    "QueueHealthCheckDocument": "queue_health_check",
}
ACCOUNT, REGION = "123456789012", "eu-west-1"
PARAMETERS = {"Environment": "test", "Domains": ["example.com", "example.org"]}
NO_VALUE = object()

SUBSTITUTION = re.compile(r"\$\{(\w+)}")
# Errors that Lambda and Step Functions raise themselves, by the exact names that AWS documents.
SERVICE_ERRORS = {
    "Lambda.AWSLambdaException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.SdkClientException",
    "Lambda.ServiceException",
    "Lambda.TooManyRequestsException",
    "States.ALL",
    "States.TaskFailed",
    "States.Timeout",
}
# Of Lambda itself and not of the function: each is retried under its exact name.
LAMBDA_ERRORS = {error for error in SERVICE_ERRORS if error.startswith("Lambda.")}
# Raised and caught in the router, which returns it with the recipients that it concerns.
RETURNED_ERRORS = {"InvalidRoutingRuleError"}
# Read by Powertools, not by our code.
POWERTOOLS = re.compile(r"POWERTOOLS_\w+")
HISTORY_LIMIT = 25_000
MAX_DELIVERIES = 100


class Grant(NamedTuple):
    """One IAM action on one resource."""

    action: str
    resource: str


QUEUES = ("InputQueue", "InputDlq", "GmailForwarderDlq", "BouncerDlq")
# Every function's own log group and X-Ray; the state machine's log delivery and X-Ray.
OBSERVING = re.compile(r"(logs|xray):\w+")
SERVICES = {
    "cloudwatch": "cloudwatch",
    "dynamodb": "dynamodb",
    "pipes": "pipes",
    "s3": "s3",
    "ses": "ses",
    "sqs": "sqs",
    "ssm": "ssm",
    "stepfunctions": "states",
}


def operations() -> dict[str, tuple[str, str]]:
    """boto3 method name → (IAM service prefix, operation) of the services in use."""
    found = {}
    for service, prefix in SERVICES.items():
        client = boto3.client(
            service, region_name=REGION, aws_access_key_id="none", aws_secret_access_key="none"
        )
        for operation in client.meta.service_model.operation_names:
            found[xform_name(operation)] = (prefix, operation)
    return found


OPERATIONS = operations()


@dataclass
class Task:
    """A state of type Task."""

    name: str
    state: dict[str, Any]
    in_map: bool

    @property
    def is_lambda(self) -> bool:
        return ":lambda:invoke" in self.state["Resource"]

    @property
    def retriers(self) -> list[dict[str, Any]]:
        return list(self.state.get("Retry", []))

    @property
    def retried_errors(self) -> set[str]:
        return {name for retrier in self.retriers for name in retrier["ErrorEquals"]}

    def substitutions(self, argument: str) -> list[str]:
        return SUBSTITUTION.findall(str(self.state.get("Arguments", {}).get(argument, "")))


@dataclass
class Project:
    """The files of the project under `root`, parsed."""

    root: Path
    parameters: dict[str, Any] = field(default_factory=lambda: dict(PARAMETERS))
    file: str = "template.yaml"

    @cached_property
    def template(self) -> dict[str, Any]:
        return dict(yaml_parse((self.root / self.file).read_text()))

    @cached_property
    def resources(self) -> dict[str, Any]:
        return dict(self.template["Resources"])

    @cached_property
    def deployed(self) -> dict[str, Any]:
        """The resources as CloudFormation gets them, with all that SAM adds."""
        given = {k: ",".join(v) if isinstance(v, list) else v for k, v in self.parameters.items()}
        return dict(translated(self.root, self.file, given)["Resources"])

    def deployed_properties(self, logical_id: str) -> dict[str, Any]:
        """Properties of a deployed resource, all resolved."""
        return dict(self.resolve(self.deployed[logical_id].get("Properties", {})))

    def _resource(self, logical_id: str) -> dict[str, Any]:
        return dict(self.resources.get(logical_id) or self.deployed[logical_id])

    @cached_property
    def asl_text(self) -> str:
        return (self.root / ASL).read_text()

    @cached_property
    def machine(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.asl_text))

    # ── the template with its intrinsic functions worked out ─────────────────────────────────────

    def properties(self, logical_id: str) -> dict[str, Any]:
        """The resource's properties, for functions with those of Globals, all resolved."""
        resource = self.resources[logical_id]
        own = resource.get("Properties", {})
        if resource["Type"] == "AWS::Serverless::Function":
            shared = self.template["Globals"]["Function"]
            variables = [part.get("Environment", {}).get("Variables", {}) for part in (shared, own)]
            own = {
                **shared,
                **own,
                "Layers": [*shared.get("Layers", []), *own.get("Layers", [])],
                "Environment": {"Variables": {**variables[0], **variables[1]}},
            }
        return dict(self.resolve(own))

    def resolve(self, value: Any) -> Any:
        """The value as CloudFormation would give it, with made-up account and region."""
        if isinstance(value, list):
            return [r for r in map(self.resolve, value) if r is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((function, argument),) = value.items()
            if function == "Ref":
                return self._ref(argument)
            if function.startswith("Fn::"):
                return getattr(self, "_" + function.removeprefix("Fn::").lower())(argument)
        resolved = {name: self.resolve(item) for name, item in value.items()}
        return {name: item for name, item in resolved.items() if item is not NO_VALUE}

    def _ref(self, name: str) -> Any:
        pseudo = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Region": REGION,
            "AWS::Partition": "aws",
            "AWS::NoValue": NO_VALUE,
        }
        if name in pseudo:
            return pseudo[name]
        if name in self.template["Parameters"]:
            return self.parameters.get(name, self.template["Parameters"][name].get("Default"))
        if self._resource(name)["Type"] == "AWS::SQS::Queue":
            return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{self.name(name)}"
        if self._resource(name)["Type"] in ("AWS::SNS::Topic", "AWS::Serverless::StateMachine"):
            return self.arn(name)
        return self.name(name)

    def name(self, logical_id: str) -> str:
        """The physical name, or the logical id of what has none of its own."""
        resource = self._resource(logical_id)
        kind = resource["Type"].split(":")[-1]
        own = {"LayerVersion": "LayerName", "ReceiptRuleSet": "RuleSetName"}.get(
            kind, f"{kind}Name"
        )
        properties = resource["Properties"]
        return str(self.resolve(properties.get(own, properties.get("Name", logical_id))))

    def arn(self, logical_id: str) -> str:
        """The resource's ARN."""
        name = self.name(logical_id)
        here = f"{REGION}:{ACCOUNT}"
        return {
            "AWS::DynamoDB::Table": f"arn:aws:dynamodb:{here}:table/{name}",
            "AWS::IAM::Role": f"arn:aws:iam::{ACCOUNT}:role/{name}",
            "AWS::Pipes::Pipe": f"arn:aws:pipes:{here}:pipe/{name}",
            "AWS::Logs::LogGroup": f"arn:aws:logs:{here}:log-group:{name}:*",
            "AWS::S3::Bucket": f"arn:aws:s3:::{name}",
            "AWS::SNS::Topic": f"arn:aws:sns:{here}:{name}",
            "AWS::SQS::Queue": f"arn:aws:sqs:{here}:{name}",
            "AWS::Events::Rule": f"arn:aws:events:{here}:rule/{name}",
            "AWS::Serverless::Function": f"arn:aws:lambda:{here}:function:{name}",
            "AWS::Serverless::StateMachine": f"arn:aws:states:{here}:stateMachine:{name}",
        }[self._resource(logical_id)["Type"]]

    def _getatt(self, path: list[str]) -> str:
        assert path[1] == "Arn", path
        return self.arn(path[0])

    def _transform(self, argument: dict[str, Any]) -> Any:
        assert argument["Name"] == "AWS::Include", argument
        file = self.root / argument["Parameters"]["Location"]
        # Not yaml_parse: an include takes no short forms.
        return self.resolve(yaml.safe_load(file.read_text()))

    def _sub(self, argument: Any) -> str:
        text, values = argument if isinstance(argument, list) else (argument, {})

        def replacement(match: re.Match[str]) -> str:
            name = match[1]
            if name in values:
                return str(self.resolve(values[name]))
            return str(self.arn(name[:-4]) if name.endswith(".Arn") else self._ref(name))

        return re.sub(r"\$\{([\w:.]+)}", replacement, text)

    def _join(self, argument: list[Any]) -> str:
        return str(argument[0]).join(map(str, self.resolve(argument[1])))

    def _split(self, argument: list[Any]) -> list[str]:
        return list(self.resolve(argument[1]).split(argument[0]))

    def _if(self, argument: list[Any]) -> Any:
        condition = self.resolve(self.template["Conditions"][argument[0]])
        return self.resolve(argument[1] if condition else argument[2])

    def _equals(self, argument: list[Any]) -> bool:
        return len({str(self.resolve(item)) for item in argument}) == 1

    def _not(self, argument: list[Any]) -> bool:
        return not self.resolve(argument[0])

    def grants(self, role: str) -> set[Grant]:
        """What the role's own policies allow; without logs and X-Ray."""
        return {grant for grant in self.all_grants(role) if not OBSERVING.match(grant.action)}

    def all_grants(self, role: str) -> set[Grant]:
        """What the role's own policies allow."""
        return {
            Grant(action, resource)
            for policy in self.properties(role)["Policies"]
            for statement in policy["PolicyDocument"]["Statement"]
            for action in as_list(statement["Action"])
            for resource in as_list(statement["Resource"])
        }

    # ── the state machine ────────────────────────────────────────────────────────────────────────

    def scopes(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Every {StartAt, States} with whether it lies in a Map."""
        waiting = [(self.machine, False)]
        while waiting:
            scope, in_map = waiting.pop()
            yield scope, in_map
            for state in scope["States"].values():
                if "ItemProcessor" in state:
                    waiting.append((state["ItemProcessor"], True))
                waiting += [(branch, in_map) for branch in state.get("Branches", [])]

    def tasks(self) -> list[Task]:
        return [
            Task(name, state, in_map)
            for scope, in_map in self.scopes()
            for name, state in scope["States"].items()
            if state["Type"] == "Task"
        ]

    def assigned_queues(self) -> set[str]:
        """The substitutions that `Park` may find in its variable `queue`."""
        return {
            name
            for scope, _ in self.scopes()
            for state in scope["States"].values()
            for rule in [*state.get("Choices", []), *state.get("Catch", [])]
            for name in SUBSTITUTION.findall(rule.get("Assign", {}).get("queue", ""))
        }

    @cached_property
    def substitutions(self) -> dict[str, Any]:
        return dict(
            self.resources["ProcessEmailStateMachine"]["Properties"]["DefinitionSubstitutions"]
        )

    def function_of(self, task: Task) -> str | None:
        """Logical id of the function that a task invokes."""
        for name in task.substitutions("FunctionName"):
            value = self.substitutions.get(name)
            if value:
                return str(value["Fn::GetAtt"][0])
        return None

    # ── the code ─────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def error_classes(self) -> set[str]:
        tree = ast.parse((self.root / "functions/ses_mail/errors.py").read_text())
        classes = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
        return {name for name in classes if not name.startswith("_")}

    def code(self, module: str) -> list[ast.AST]:
        """What the handler's module can reach, by name: its own nodes, the module level of all that
        it imports, and every function, method or class of these whose name occurs in there."""
        trees = self._closure(module)
        definitions: dict[str, list[ast.AST]] = {}
        reached: list[ast.AST] = []
        for name, tree in trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and name != module:
                    definitions.setdefault(node.name, []).append(node)
            reached += [tree] if name == module else outside_functions(tree)
        nodes: list[ast.AST] = []
        while reached:
            for node in ast.walk(reached.pop()):
                nodes.append(node)
                for used in names_of(node):
                    reached += definitions.pop(used, [])
                if isinstance(node, ast.Call):
                    reached += definitions.pop("__init__", [])
        return nodes

    def _closure(self, module: str) -> dict[str, ast.Module]:
        trees: dict[str, ast.Module] = {}
        waiting = [module]
        while waiting:
            name = waiting.pop()
            path = self.root / "functions" / f"{name.replace('.', '/')}.py"
            if name in trees or not path.is_file():
                continue
            trees[name] = ast.parse(path.read_text())
            for node in ast.walk(trees[name]):
                if isinstance(node, ast.ImportFrom) and node.module:
                    waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
                elif isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
        return trees


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def outside_functions(tree: ast.Module) -> list[ast.AST]:
    """The statements that run when the module is imported."""
    found: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found += [n for n in node.body if not isinstance(n, ast.FunctionDef)]
        elif not isinstance(node, ast.FunctionDef):
            found.append(node)
    return found


def names_of(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def one_name_everywhere(project: Project) -> list[str]:
    """Logical id, name, handler, file and event of a function are one word."""
    problems = []
    declared = {
        name
        for name, resource in project.resources.items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    problems += [f"{name} is not declared here" for name in declared ^ set(FUNCTIONS)]
    for logical_id in declared & set(FUNCTIONS):
        module = FUNCTIONS[logical_id]
        properties = project.properties(logical_id)
        if properties["Handler"] != f"{module}.handler":
            problems.append(f"{logical_id}: handler {properties['Handler']}")
        if properties["FunctionName"] != f"ses-mail-{module.replace('_', '-')}-test":
            problems.append(f"{logical_id}: name {properties['FunctionName']}")
        if properties["Role"] != project.arn(logical_id.replace("Function", "Role")):
            problems.append(f"{logical_id}: role {properties['Role']}")
        path = project.root / "functions" / f"{module}.py"
        if not path.is_file():
            problems.append(f"{logical_id}: no file {path.name}")
        elif "handler" not in [
            node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")
        ]:
            problems.append(f"{path.name}: no handler")
        if not (project.root / "events" / f"{module}.json").is_file():
            problems.append(f"{logical_id}: no event {module}.json")
    return problems


def substitutions_agree(project: Project) -> list[str]:
    """Every ${…} of the state machine is given, and nothing else."""
    used = set(SUBSTITUTION.findall(project.asl_text))
    given = set(project.substitutions)
    return [f"{name} is used but not given" for name in used - given] + [
        f"{name} is given but not used" for name in given - used
    ]


def transitions(project: Project) -> list[str]:
    """Every target exists, every state is reachable and leads on, every Choice has a Default."""
    problems = []
    for scope, _ in project.scopes():
        states = scope["States"]
        reached, waiting = set(), [scope["StartAt"]]
        while waiting:
            name = waiting.pop()
            if name in reached:
                continue
            reached.add(name)
            if name not in states:
                problems.append(f"no state {name!r}")
                continue
            state = states[name]
            waiting += next_states(state)
            ends = state["Type"] in ("Succeed", "Fail") or state.get("End") is True
            if state["Type"] == "Choice":
                if "Default" not in state:
                    problems.append(f"{name!r} has no Default")
            elif ends == ("Next" in state):
                problems.append(f"{name!r} needs either an end or a Next")
        problems += [f"{name!r} cannot be reached" for name in set(states) - reached]
    return problems


def next_states(state: dict[str, Any]) -> list[str]:
    """Where a state may lead."""
    rules = [rule for key in ("Choices", "Catch") for rule in state.get(key, [])]
    steps = [state.get("Next"), state.get("Default"), *(rule.get("Next") for rule in rules)]
    return [step for step in steps if step]


def error_names(project: Project) -> list[str]:
    """Only errors that exist are named, and a task names all that its function raises."""
    known = project.error_classes | SERVICE_ERRORS
    problems = []
    for scope, _ in project.scopes():
        for name, state in scope["States"].items():
            for rule in [*state.get("Retry", []), *state.get("Catch", [])]:
                unknown = set(rule["ErrorEquals"]) - known
                problems += [f"{name!r} names the unknown error {error}" for error in unknown]
    named = set().union(*(task.retried_errors for task in project.tasks()))
    unnamed = project.error_classes - named - RETURNED_ERRORS
    problems += [f"no Retry names {error}" for error in unnamed]
    for task in project.tasks():
        function = project.function_of(task)
        if function:
            raised = {
                called
                for node in project.code(FUNCTIONS[function])
                if isinstance(node, ast.Call)
                for called in names_of(node.func)
            }
            missing = raised & project.error_classes - task.retried_errors - RETURNED_ERRORS
            problems += [f"{task.name!r} does not name {error}" for error in missing]
    return problems


def retries(project: Project) -> list[str]:
    """Permanent errors first and never retried, States.ALL alone and last, everything caught."""
    problems = []
    for task in project.tasks():
        names = [set(retrier["ErrorEquals"]) for retrier in task.retriers]
        if task.is_lambda and (not names or task.retriers[0].get("MaxAttempts") != 0):
            problems.append(f"{task.name!r}: the first retrier is not for permanent errors")
        if not names or names[-1] != {"States.ALL"}:
            problems.append(f"{task.name!r}: States.ALL is not the last retrier")
        if task.is_lambda and not task.retried_errors >= LAMBDA_ERRORS:
            problems.append(f"{task.name!r} does not name all errors of Lambda itself")
        if any("States.ALL" in group for group in names[:-1]):
            problems.append(f"{task.name!r}: States.ALL is not alone and last")
        for error in set().union(*names) if names else ():
            if sum(error in group for group in names) > 1:
                problems.append(f"{task.name!r} names {error} twice")
        for retrier in task.retriers[1:]:
            in_progress = "DeliveryInProgressError" in retrier["ErrorEquals"]
            if (retrier.get("JitterStrategy") == "FULL") == in_progress:
                # A lease cannot be waited for with jitter, and everything else needs it.
                problems.append(f"{task.name!r}: wrong jitter for {retrier['ErrorEquals']}")
        catch = task.state.get("Catch", [])
        if not catch or catch[-1]["ErrorEquals"] != ["States.ALL"]:
            problems.append(f"{task.name!r} does not catch everything")
    return problems


def timeouts(project: Project) -> list[str]:
    """Every task gives up, and later than its function does."""
    problems = []
    for task in project.tasks():
        limit = task.state.get("TimeoutSeconds")
        if not isinstance(limit, int):
            problems.append(f"{task.name!r} has no TimeoutSeconds")
            continue
        function = project.function_of(task)
        if function and limit <= project.properties(function)["Timeout"]:
            problems.append(f"{task.name!r} gives up before its function")
    return problems


def longest_wait(retrier: dict[str, Any]) -> float:
    """Seconds that the retrier can wait in all."""
    interval, rate = retrier.get("IntervalSeconds", 1), retrier.get("BackoffRate", 2.0)
    longest = retrier.get("MaxDelaySeconds", float("inf"))
    return sum(
        min(interval * rate**attempt, longest) for attempt in range(retrier.get("MaxAttempts", 3))
    )


def waits(project: Project) -> list[str]:
    """How long each task waits, by the error: the real intervals, as the file has them."""
    hour, minute = 3600, 60
    bounds = {
        # About a day in all (full jitter halves it) and less than two.
        "GmailTemporaryError": (40 * hour, 48 * hour),
        # SES refuses a bounce after 24 h.
        "BounceThrottledError": (12 * hour, 20 * hour),
        # A burst waits here, because StartExecution gives no back-pressure.
        "Lambda.TooManyRequestsException": (12 * hour, 48 * hour),
        "States.ALL": (10 * minute, 30 * minute),
    }
    margins = {"gmail_forwarder": "forward", "bouncer": "bounce"}
    problems = []
    for task in project.tasks():
        for retrier in task.retriers:
            for error in retrier["ErrorEquals"]:
                shortest, longest = bounds.get(error, (0.0, float("inf")))
                function = project.function_of(task)
                if error == "DeliveryInProgressError" and function:
                    code = project.root / f"functions/ses_mail/{margins[FUNCTIONS[function]]}.py"
                    margin = re.search(
                        r"^_LEASE_MARGIN = ([\d.]+)$", code.read_text(), re.MULTILINE
                    )
                    assert margin, code
                    lease = project.properties(function)["Timeout"] + float(margin[1])
                    outlasted, crashes = leases_outlasted(retrier, lease + minute), crashes_of(task)
                    if outlasted < crashes:
                        problems.append(
                            f"{task.name!r} outlasts {outlasted} of {crashes} crashed attempts"
                        )
                    # Nobody waits much longer than a lease, however often it was waited for.
                    longest = crashes * (lease + 2 * minute) + 2 * minute
                wait = longest_wait(retrier)
                if not shortest <= wait <= longest:
                    problems.append(f"{task.name!r} waits {wait:.0f} s for {error}")
        limit = task.state.get("TimeoutSeconds", 0)
        # What meets another's lease ends at once; every other attempt may use its whole time.
        working = [r for r in task.retriers if "DeliveryInProgressError" not in r["ErrorEquals"]]
        for retrier in working:
            in_all = longest_wait(retrier) + retrier.get("MaxAttempts", 3) * limit
            if in_all > 50 * hour:
                problems.append(f"{task.name!r} tries for {in_all / hour:.1f} h")
        attempts = 1 + sum(retrier.get("MaxAttempts", 3) for retrier in working)
        in_all = sum(map(longest_wait, task.retriers)) + attempts * limit
        # Three rounds of 40 deliveries are over within a week.
        if in_all > 54 * hour:
            problems.append(f"{task.name!r} may take {in_all / hour:.1f} h")
    return problems


def crashes_of(task: Task) -> int:
    """How many attempts may die with a lease in hand and be followed by another attempt.

    Those under States.ALL, and under Lambda's own errors, which say nothing of the function's end.
    """
    unclear = {"States.ALL", *LAMBDA_ERRORS - {"Lambda.TooManyRequestsException"}}
    return sum(r.get("MaxAttempts", 3) for r in task.retriers if unclear & set(r["ErrorEquals"]))


def leases_outlasted(retrier: dict[str, Any], lease: float) -> int:
    """How many leases, one after the other, the retrier's waits outlast."""
    interval, rate = retrier.get("IntervalSeconds", 1), retrier.get("BackoffRate", 2.0)
    longest = retrier.get("MaxDelaySeconds", float("inf"))
    outlasted, waited = 0, 0.0
    for attempt in range(retrier.get("MaxAttempts", 3)):
        waited += min(interval * rate**attempt, longest)
        if waited >= lease:
            outlasted, waited = outlasted + 1, 0.0
    return outlasted


def worst_history(project: Project) -> int:
    """Events of an execution in which every delivery fails at every attempt and is not parked."""

    def events_of(state: dict[str, Any]) -> int:
        attempts = 1 + sum(r.get("MaxAttempts", 3) for r in state.get("Retry", []))
        # A state is entered and exited, an attempt scheduled, started and failed.
        return 2 + (3 * attempts if state["Type"] == "Task" else 0)

    def longest(scope: dict[str, Any], name: str) -> int:
        state = scope["States"][name]
        total = events_of(state)
        if "ItemProcessor" in state:
            inner = state["ItemProcessor"]
            # Each iteration is started and ended; what exceeds the limit is parked in one more.
            total += (MAX_DELIVERIES + 1) * (2 + longest(inner, inner["StartAt"]))
        return total + max((longest(scope, step) for step in next_states(state)), default=0)

    return 2 + longest(project.machine, project.machine["StartAt"])


def history_fits(project: Project) -> list[str]:
    """The worst execution stays under the limit that would kill it uncatchably."""
    worst = worst_history(project)
    return [f"{worst} history events"] if worst >= HISTORY_LIMIT else []


def environment(project: Project) -> list[str]:
    """Each function gets the variables that it reads, and no others."""
    problems = []
    for logical_id, module in FUNCTIONS.items():
        read = set()
        for node in project.code(module):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                read.add(ast.literal_eval(node.slice))
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "os.getenv",
                "os.environ.get",
            ):
                problems.append(f"{module} makes up a default for a variable")
        given = set(project.properties(logical_id)["Environment"]["Variables"])
        problems += [f"{module} reads {name}, which nobody gives" for name in read - given]
        problems += [
            f"{logical_id} gives {name}, which nobody reads"
            for name in given - read
            if not POWERTOOLS.fullmatch(name)
        ]
    return problems


def calls(project: Project, module: str) -> set[tuple[str, str]]:
    """(IAM prefix, operation) of the AWS calls that the handler can make, by a paginator too."""
    return calls_of(project.code(module))


def calls_of(nodes: list[ast.AST]) -> set[tuple[str, str]]:
    """(IAM prefix, operation) of the AWS calls among these nodes."""
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
        node.args[0].value
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get_paginator")
    }
    return {OPERATIONS[name] for name in names if name in OPERATIONS}


def transacted(project: Project, module: str) -> set[str]:
    """Operations in the handler's TransactWriteItems: IAM asks for each one's own action."""
    actions = {
        "Put": "PutItem",
        "Update": "UpdateItem",
        "Delete": "DeleteItem",
        "ConditionCheck": "ConditionCheckItem",
    }
    return {
        actions[key.value]
        for node in project.code(module)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and key.value in actions
    }


def needed(project: Project, logical_id: str) -> set[Grant]:
    """What a function's calls need, on the resources that its environment names."""
    module = FUNCTIONS[logical_id]
    variables = project.properties(logical_id)["Environment"]["Variables"]
    machine = project.arn("ProcessEmailStateMachine")
    bucket = project.arn("EmailBucket")
    tables = [
        project.arn(table)
        for table in ("RoutingTable", "DeliveriesTable")
        if project.name(table) in variables.values()
    ]
    queues = [
        project.arn(queue)
        for queue, resource in project.resources.items()
        if resource["Type"] == "AWS::SQS::Queue"
        and project.resolve({"Ref": queue})
        in [url for name, url in variables.items() if name.endswith("DLQ_URL")]
    ]
    in_ssm = f"arn:aws:ssm:{REGION}:{ACCOUNT}"
    default = f"{in_ssm}:parameter{variables.get('TOKEN_PARAMETER')}"
    of_mailboxes = f"{in_ssm}:parameter{variables.get('MAILBOX_TOKEN_PREFIX')}"
    parameters = {
        "GetParameter": [default, f"{of_mailboxes}*"],
        # IAM asks for the right on the path itself.
        "GetParametersByPath": [of_mailboxes.removesuffix("/")],
        # AWS's pages disagree on which of these it asks for; of executions no name is known before.
        "StartAutomationExecution": [
            f"{in_ssm}:automation-definition/{variables.get('REDRIVE_DOCUMENT')}:*",
            f"{in_ssm}:document/{variables.get('REDRIVE_DOCUMENT')}",
            f"{in_ssm}:automation-execution/*",
        ],
    }
    identities = [f"arn:*:ses:*:*:identity/{domain}" for domain in PARAMETERS["Domains"]]
    grants = set()
    for prefix, operation in calls(project, module):
        if operation == "TransactWriteItems":
            grants |= {
                Grant(f"dynamodb:{action}", table)
                for table in tables
                for action in transacted(project, module)
            }
            continue
        resources = {
            "dynamodb": tables,
            "s3": [f"{bucket}/emails/*"],
            "ses": identities,
            "sqs": queues,
            "ssm": parameters.get(operation, []),
            "states": [machine]
            if operation in ("StartExecution", "ListExecutions")
            else [machine.replace(":stateMachine:", ":execution:") + ":*"],
        }[prefix]
        grants |= {Grant(f"{prefix}:{operation}", resource) for resource in resources}
        if operation == "GetObject":
            # Or a missing object is answered like a forbidden one.
            grants.add(Grant("s3:ListBucket", bucket))
        if operation == "StartAutomationExecution":
            # Whoever starts a document hands its role over.
            grants.add(Grant("iam:PassRole", project.arn("DlqRedriveRole")))
    return grants


def permissions(project: Project) -> list[str]:
    """A function's role allows what its code calls, on these resources, and nothing else."""
    problems = []
    for logical_id in FUNCTIONS:
        granted = project.grants(logical_id.replace("Function", "Role"))
        wanted = needed(project, logical_id)
        problems += [f"{logical_id} may not {a} on {r}" for a, r in wanted - granted]
        problems += [f"{logical_id} needs no {a} on {r}" for a, r in granted - wanted]
    return problems


def machine_permissions(project: Project) -> list[str]:
    """The state machine may do what its tasks do, and nothing else."""
    kinds = {
        ":lambda:invoke": ("lambda:InvokeFunction", "FunctionName"),
        ":sqs:sendMessage": ("sqs:SendMessage", "QueueUrl"),
        "dynamodb:putItem": ("dynamodb:PutItem", "TableName"),
    }
    wanted = set()
    for task in project.tasks():
        (kind,) = [
            kind for ending, kind in kinds.items() if task.state["Resource"].endswith(ending)
        ]
        action, argument = kind
        for name in task.substitutions(argument) or project.assigned_queues():
            value = project.substitutions.get(name, {"Ref": "EmailBucket"})
            target = value.get("Ref") or value["Fn::GetAtt"][0]
            wanted.add(Grant(action, project.arn(target)))
    granted = project.grants("ProcessEmailRole")
    return [f"the state machine may not {a} on {r}" for a, r in wanted - granted] + [
        f"the state machine needs no {a} on {r}" for a, r in granted - wanted
    ]


def documents(project: Project) -> list[str]:
    """An automation document is its file, runs under its own role, and its parts fit together."""
    problems = []
    declared = {n for n, r in project.resources.items() if r["Type"] == "AWS::SSM::Document"}
    problems += [f"{name} is not declared here" for name in declared ^ set(DOCUMENTS)]
    for logical_id in declared & set(DOCUMENTS):
        given = project.resources[logical_id]["Properties"]
        file = given["Content"]["Fn::Transform"]["Parameters"]["Location"]
        if file != f"runbooks/{DOCUMENTS[logical_id]}.yaml":
            problems.append(f"{logical_id}: file {file}")
        if (given["DocumentType"], given.get("UpdateMethod")) != ("Automation", "NewVersion"):
            problems.append(f"{logical_id}: type or update method")
        content = project.properties(logical_id)["Content"]
        if content["assumeRole"] != project.arn(logical_id.replace("Document", "Role")):
            problems.append(f"{logical_id}: role {content['assumeRole']}")
        (step,) = content["mainSteps"]
        inputs, outputs = step["inputs"], {o["Name"]: o for o in step["outputs"]}
        tree = ast.parse(inputs["Script"], feature_version=(3, 11))
        if inputs["Handler"] not in {getattr(node, "name", None) for node in tree.body}:
            problems.append(f"{logical_id}: no handler {inputs['Handler']}")
        if (inputs["Runtime"], step["timeoutSeconds"] <= 600) != ("python3.11", True):
            problems.append(f"{logical_id}: runtime or time limit")
        used = set(re.findall(r"{{ (\w+) }}", json.dumps(inputs["InputPayload"])))
        unused = used ^ set(content.get("parameters", {}))
        problems += [f"{logical_id}: parameter {name}" for name in unused]
        read = {
            node.slice.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and ast.unparse(node.value) == "request"
        }
        problems += [f"{logical_id}: request {name}" for name in read ^ set(inputs["InputPayload"])]
        if set(content["outputs"]) != {f"{step['name']}.{name}" for name in outputs}:
            problems.append(f"{logical_id}: outputs of the step")
        returned = {
            key.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)
            for key in node.value.keys
            if isinstance(key, ast.Constant)
        }
        for name, output in outputs.items():
            if output["Selector"] != f"$.Payload.{name}" or name not in returned:
                problems.append(f"{logical_id}: output {name}")
    return problems


def document_permissions(project: Project) -> list[str]:
    """A document's role allows what its script calls, on what it is given, and nothing else."""
    problems = []
    for logical_id in DOCUMENTS:
        (step,) = project.properties(logical_id)["Content"]["mainSteps"]
        payload = step["inputs"]["InputPayload"]
        tree = ast.parse(step["inputs"]["Script"])
        queue = {project.resolve({"Ref": name}): project.arn(name) for name in QUEUES}
        into = [queue[payload["InputQueueUrl"]]]
        letters = [queue[url] for url in payload["DeadLetterQueueUrls"]]
        wanted = set()
        for prefix, operation in calls_of(list(ast.walk(tree))):
            resources = {
                "sqs": into
                if operation == "SendMessage"
                else letters
                if "SourceQueueUrl" in payload
                else into + letters,
                "pipes": [project.arn("Pipe")],
                "states": [payload.get("StateMachineArn", "")],
                "dynamodb": [project.arn("DeliveriesTable")],
                "ses": ["*"],
                "cloudwatch": ["*"]
                if operation == "GetMetricData"
                else [f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:*"],
            }[prefix]
            action = f"{prefix}:{operation.removesuffix('Batch')}"
            wanted |= {Grant(action, resource) for resource in resources}
        granted = project.all_grants(logical_id.replace("Document", "Role"))
        problems += [f"{logical_id} may not {a} on {r}" for a, r in wanted - granted]
        problems += [f"{logical_id} needs no {a} on {r}" for a, r in granted - wanted]
    return problems


def observing(project: Project) -> list[str]:
    """Every function may write into its own log group and traces, and create neither group."""
    problems = []
    for logical_id in FUNCTIONS:
        group = logical_id.replace("Function", "LogGroup")
        wanted = {Grant(f"xray:{a}", "*") for a in ("PutTraceSegments", "PutTelemetryRecords")} | {
            Grant(f"logs:{a}", project.arn(group)) for a in ("CreateLogStream", "PutLogEvents")
        }
        role = logical_id.replace("Function", "Role")
        granted = {g for g in project.all_grants(role) if OBSERVING.match(g.action)}
        if granted != wanted:
            problems.append(f"{role}: {sorted(granted ^ wanted)}")
        properties = project.properties(logical_id)
        if properties.get("LoggingConfig") != {
            "LogGroup": f"/aws/lambda/{project.name(logical_id)}"
        }:
            problems.append(f"{logical_id} logs elsewhere")
        if properties.get("Tracing") != "Active":
            problems.append(f"{logical_id} is not traced")
    return problems


def log_delivery(project: Project) -> list[str]:
    """Pipe and state machine may write their own logs, and the machine its traces.

    Source: Step Functions, "Logging using CloudWatch Logs" and "Tracing with X-Ray"; AWS takes no
    resource for either.
    """
    wanted = {
        "PipeRole": {
            Grant(f"logs:{action}", project.arn("PipeLogGroup"))
            for action in ("CreateLogStream", "PutLogEvents")
        },
        "ProcessEmailRole": {
            Grant(f"logs:{action}", "*")
            for action in (
                *(f"{verb}LogDelivery" for verb in ("Create", "Get", "Update", "Delete")),
                *("ListLogDeliveries", "PutResourcePolicy", "DescribeResourcePolicies"),
                "DescribeLogGroups",
            )
        }
        | {
            Grant(f"xray:{action}", "*")
            for action in (
                *("PutTraceSegments", "PutTelemetryRecords"),
                *("GetSamplingRules", "GetSamplingTargets"),
            )
        },
    }
    problems = []
    for role, grants in wanted.items():
        granted = {g for g in project.all_grants(role) if OBSERVING.match(g.action)}
        problems += [f"{role}: {grant}" for grant in sorted(granted ^ grants)]
    return problems


def trust(project: Project) -> list[str]:
    """Each role is assumed by the one service that it is for, and by nobody else."""
    services = {"PipeRole": "pipes", "ProcessEmailRole": "states"}
    services |= {name.replace("Function", "Role"): "lambda" for name in FUNCTIONS}
    problems = []
    for role, resource in project.resources.items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        document = project.properties(role)["AssumeRolePolicyDocument"]
        (statement,) = as_list(document["Statement"])
        wanted = {
            "Effect": "Allow",
            "Principal": {"Service": f"{services.get(role, 'ssm')}.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
        given = {key: value for key, value in statement.items() if key != "Condition"}
        if given != wanted:
            problems.append(f"{role} may be assumed as {given}")
        # Lambda sends no source with its call; the others do, against the confused deputy.
        source = statement.get("Condition", {}).get("StringEquals", {}).get("aws:SourceAccount")
        if services.get(role) != "lambda" and source != ACCOUNT:
            problems.append(f"{role} may be assumed for another account")
    return problems


def events_match(project: Project) -> list[str]:
    """The sample events look like what the pipe and the tasks send."""
    problems = []
    path = project.root / "events/starter.json"
    records = json.loads(path.read_text()) if path.is_file() else {}
    # A Pipe hands over a JSON array even of one record.
    if not isinstance(records, list) or not all({"messageId", "body"} <= set(r) for r in records):
        problems.append(f"{path.name} is no list of SQS records")
    for task in project.tasks():
        function = project.function_of(task)
        payload = task.state.get("Arguments", {}).get("Payload")
        if function is None or not isinstance(payload, dict):
            continue
        path = project.root / "events" / f"{FUNCTIONS[function]}.json"
        sample = json.loads(path.read_text()) if path.is_file() else {}
        problems += [f"{path.name}: {name}" for name in sorted(set(sample) ^ set(payload))]
    return problems


CHECKS: list[Callable[[Project], list[str]]] = [
    one_name_everywhere,
    substitutions_agree,
    transitions,
    error_names,
    retries,
    timeouts,
    waits,
    history_fits,
    environment,
    permissions,
    machine_permissions,
    documents,
    document_permissions,
    observing,
    log_delivery,
    trust,
    events_match,
]
