"""SSM Automation: runs the scripts of documents, which moto keeps and cannot start."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from moto.core.responses import ActionResult
from moto.ssm.exceptions import InvalidFilterKey, SSMException
from moto.ssm.responses import SimpleSystemManagerResponse

from local.patches import Patches
from local.runtime import Function, Runtime

LIMIT = 600  # seconds that SSM gives a script
VARIABLE = re.compile(r"{{\s*(\w+)\s*}}")
TYPES = {"Integer": int, "String": str}  # of outputs; parameters are Strings only
FILTERS: dict[str, Callable[[Execution, str], bool]] = {
    "DocumentNamePrefix": lambda execution, value: execution.document.startswith(value),
    "ExecutionStatus": lambda execution, value: execution.status == value,
    "ExecutionId": lambda execution, value: execution.id == value,
}


@dataclass
class Execution:
    """One run of a document; times are AWS's own, as moto's are."""

    id: str
    document: str
    version: str
    content: Mapping[str, Any]
    parameters: Mapping[str, Sequence[str]]
    runtime: Runtime
    started: datetime
    ended: datetime | None = None
    status: str = "InProgress"
    failure: str = ""
    output: dict[str, Any] = field(default_factory=dict)  # ExecutionLog and Payload
    outputs: dict[str, list[str]] = field(default_factory=dict)  # by name, without the step's

    @property
    def step(self) -> Mapping[str, Any]:
        (step,) = self.content["mainSteps"]
        return dict(step)


class Automation:
    """Documents of one `aws:executeScript` step with parameters of type String.

    `surroundings` and `libraries` are as for the functions; `statements(arn)` are those of the role
    that a document assumes, `policies` those of resources. A script may take `floor` real seconds
    at least.
    """

    def __init__(
        self,
        client: Callable[[str], Any],
        statements: Callable[[str], Sequence[Mapping[str, Any]]],
        *,
        policies: Mapping[str, Sequence[Mapping[str, Any]]],
        surroundings: Mapping[str, str],
        libraries: Sequence[Path],
        epoch: float,
        factor: float,
        directory: Path,
        floor: float = 60.0,
    ) -> None:
        self.floor = floor
        self.executions: dict[str, Execution] = {}
        self._client = client
        self.statements = statements
        self._policies = policies
        self._surroundings = surroundings
        self._libraries = libraries
        self._epoch = epoch
        self._factor = factor
        self._directory = directory
        self._lock = threading.Lock()

    def install(self, patches: Patches) -> None:
        """Add the operations to moto, which has none of them."""
        for name in ("start", "get", "stop"):
            operation = f"{name}_automation_execution"
            patches.add(SimpleSystemManagerResponse, operation, self._answer(name))
        patches.add(
            SimpleSystemManagerResponse, "describe_automation_executions", self._answer("describe")
        )

    def end(self) -> None:
        """Kill what is still running."""
        for execution in list(self.executions.values()):
            execution.runtime.stop()

    @property
    def under_way(self) -> int:
        """How many executions have not ended."""
        return sum(execution.ended is None for execution in list(self.executions.values()))

    def _answer(self, name: str) -> Callable[[Any], ActionResult]:
        operation = getattr(self, name)
        return lambda response: ActionResult(operation(json.loads(response.body)))

    # -- the operations, with the API's parameters and answers -------------------------------------

    def start(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """StartAutomationExecution."""
        name, version = request["DocumentName"], request.get("DocumentVersion", "$DEFAULT")
        try:
            document = self._client("ssm").get_document(
                Name=name, **({} if version == "$DEFAULT" else {"DocumentVersion": version})
            )
        except ClientError as error:
            raise SSMException(
                "AutomationDefinitionNotFoundException",
                f"Automation definition {name} is not found: {error}",
            ) from error
        content = json.loads(document["Content"])
        key = str(uuid.uuid4())
        folder = self._directory / key
        folder.mkdir(parents=True)
        execution = Execution(
            key,
            name,
            document["DocumentVersion"],
            content,
            given(content.get("parameters", {}), request.get("Parameters") or {}),
            self._sandbox(name, content, folder),
            datetime.now(UTC),
        )
        self.executions[key] = execution
        threading.Thread(target=self._run, args=(execution,), daemon=True).start()
        return {"AutomationExecutionId": key}

    def get(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """GetAutomationExecution."""
        execution = self._find(request)
        step = execution.step
        summary = _summary(execution)
        times = {name: summary[name] for name in summary if name.startswith("Execution")}
        values = {"OutputPayload": [json.dumps(execution.output)], **execution.outputs}
        return {
            "AutomationExecution": {
                **summary,
                "Parameters": execution.parameters,
                "StepExecutionsTruncated": False,
                "StepExecutions": [
                    {
                        **times,
                        "StepName": step["name"],
                        "Action": step["action"],
                        "StepStatus": execution.status,
                        "FailureMessage": execution.failure,
                        "Outputs": values if execution.output else {},
                    }
                ],
            }
        }

    def describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """DescribeAutomationExecutions, newest first."""
        found = list(self.executions.values())[::-1]
        for wanted in request.get("Filters") or []:
            if wanted["Key"] not in FILTERS:
                raise InvalidFilterKey(f"{wanted['Key']} is none of {', '.join(FILTERS)}")
            holds = FILTERS[wanted["Key"]]
            found = [e for e in found if any(holds(e, value) for value in wanted["Values"])]
        first, most = int(request.get("NextToken", 0)), request.get("MaxResults", 50)
        answer: dict[str, Any] = {
            "AutomationExecutionMetadataList": [_summary(e) for e in found[first : first + most]]
        }
        if first + most < len(found):
            answer["NextToken"] = str(first + most)
        return answer

    def stop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """StopAutomationExecution."""
        execution = self._find(request)
        with self._lock:
            if execution.ended:
                raise SSMException(
                    "InvalidAutomationStatusUpdateException",
                    f"Execution {execution.id} is {execution.status} already",
                )
            execution.status = "Cancelled"
            execution.ended = datetime.now(UTC)
        execution.runtime.stop()
        return {}

    def _find(self, request: Mapping[str, Any]) -> Execution:
        key = request["AutomationExecutionId"]
        if key not in self.executions:
            raise SSMException(
                "AutomationExecutionNotFoundException", f"Automation execution {key} is not found"
            )
        return self.executions[key]

    # -- the sandbox of a script -------------------------------------------------------------------

    def _sandbox(self, name: str, content: Mapping[str, Any], folder: Path) -> Runtime:
        (step,) = content["mainSteps"]
        if step["action"] != "aws:executeScript" or step["inputs"]["Runtime"] != "python3.11":
            raise NotImplementedError(f"{name}: {step['action']} {step['inputs'].get('Runtime')}")
        (folder / "script.py").write_text(step["inputs"]["Script"])
        function = Function(
            name=name,
            arn=name,
            handler=f"script.{step['inputs']['Handler']}",
            code=folder,
            layers=[],
            environment={},
            timeout=min(int(step["timeoutSeconds"]), LIMIT),
            memory=512,
            log_group="/aws/ssm/automation/executeScript",
            statements=self.statements(content["assumeRole"]),
            policies=self._policies,
            own_clock=True,
        )
        return Runtime(
            {name: function},
            libraries=self._libraries,
            surroundings=self._surroundings,
            epoch=self._epoch,
            factor=self._factor,
            directory=folder,
            workers=1,
            timeout_floor=self.floor,
        )

    def _run(self, execution: Execution) -> None:
        name, runtime = execution.document, execution.runtime
        inputs = execution.step["inputs"]
        payload = substituted(inputs.get("InputPayload", {}), execution.parameters)
        try:
            answer, failed = runtime.invoke(name, payload)
        except (RuntimeError, OSError) as error:  # stopped before it began
            answer, failed = (
                json.dumps({"errorType": "Cancelled", "errorMessage": str(error)}),
                True,
            )
        runtime.stop()
        log = "".join(path.read_text(errors="replace") for path in runtime.log_files(name))
        result = json.loads(answer)
        with self._lock:
            if execution.ended:
                return
            if failed:
                execution.failure = (
                    "Step fails when it is Execute/Cancelling action. "
                    f"{result['errorType']}: {result['errorMessage']}"
                )
                execution.output = {"ExecutionLog": log}
            else:
                execution.output = {"ExecutionLog": log, "Payload": result}
                execution.outputs = selected(execution.step.get("outputs", []), execution.output)
            timed_out = failed and result["errorType"] == "Sandbox.Timedout"
            execution.status = "TimedOut" if timed_out else "Failed" if failed else "Success"
            execution.ended = datetime.now(UTC)


def given(
    declared: Mapping[str, Mapping[str, Any]], values: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Each declared parameter with its value or default; refuses what SSM refuses."""
    problems = [f"{name} is no parameter of the document" for name in values.keys() - declared]
    found = {}
    for name, parameter in declared.items():
        if parameter["type"] != "String":
            raise NotImplementedError(f"{name}: parameters of type {parameter['type']}")
        found[name] = list(
            values.get(name, [parameter["default"]] if "default" in parameter else [])
        )
        if len(found[name]) != 1:
            problems.append(f"{name} needs one value")
        elif not re.search(parameter.get("allowedPattern", ""), found[name][0]):
            problems.append(f"{name} does not match {parameter['allowedPattern']}")
    if problems:
        raise SSMException(
            "InvalidAutomationExecutionParametersException", "; ".join(sorted(problems))
        )
    return found


def substituted(node: Any, parameters: Mapping[str, Sequence[str]]) -> Any:
    """The node with a parameter's value for each `{{ name }}`."""
    if isinstance(node, dict):
        return {key: substituted(value, parameters) for key, value in node.items()}
    if isinstance(node, list):
        return [substituted(value, parameters) for value in node]
    if isinstance(node, str):
        return VARIABLE.sub(lambda match: parameters[match[1]][0], node)
    return node


def selected(outputs: Sequence[Mapping[str, str]], output: Any) -> dict[str, list[str]]:
    """The step's outputs, all of which are texts once they have left the script."""
    values = {}
    for wanted in outputs:
        value = output
        for key in wanted["Selector"].removeprefix("$.").split("."):
            value = value[key]
        if not isinstance(value, TYPES[wanted["Type"]]):
            raise NotImplementedError(f"{wanted['Name']} is no {wanted['Type']}: {value!r}")
        values[wanted["Name"]] = [str(value)]
    return values


def _summary(execution: Execution) -> dict[str, Any]:
    """What Get and Describe have in common."""
    names = [name.split(".") for name in execution.content.get("outputs", [])]
    outputs = {f"{s}.{name}": execution.outputs[name] for s, name in names if execution.outputs}
    return {
        "AutomationExecutionId": execution.id,
        "DocumentName": execution.document,
        "DocumentVersion": execution.version,
        "AutomationExecutionStatus": execution.status,
        "ExecutionStartTime": execution.started,
        **({"ExecutionEndTime": execution.ended} if execution.ended else {}),
        "Mode": "Auto",
        "Outputs": outputs,
        **({"FailureMessage": execution.failure} if execution.failure else {}),
    }
