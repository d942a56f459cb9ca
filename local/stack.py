"""The resources of template.yaml and of the stacks nested in it, created in moto: what deploying is
on AWS."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
import yaml
from moto.cloudformation.models import cloudformation_backends
from moto.cloudformation.parsing import ResourceMap, clean_json
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from local.access import Access
from local.iam import ACCOUNT, REGION

# What becomes of each type of resource. A type that is in none of the three stops the cloud: a
# resource that is silently not there would prove things that do not hold on AWS.
MOTO = {  # created by moto's CloudFormation
    "AWS::CloudWatch::Dashboard",
    "AWS::DynamoDB::Table",
    "AWS::IAM::Role",
    "AWS::Lambda::Function",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SNS::Topic",
    "AWS::SQS::Queue",
    "AWS::SSM::Parameter",
}
# Ignored or misread by moto's CloudFormation; created here through the API, in this order.
ADAPTER = [
    "AWS::SNS::TopicPolicy",
    "AWS::SQS::QueuePolicy",
    "AWS::SNS::Subscription",
    "AWS::StepFunctions::StateMachine",
    "AWS::Pipes::Pipe",
    "AWS::SES::ReceiptRuleSet",
    "AWS::SES::ReceiptRule",
    "AWS::Events::Rule",
    "AWS::SSM::Document",
    "AWS::CloudWatch::Alarm",
    "AWS::Logs::QueryDefinition",
    "AWS::CloudFormation::Stack",
]
NO_EFFECT = {
    "AWS::Lambda::LayerVersion": "runtime.py builds the layers for this machine's Python",
    "AWS::Lambda::Permission": "access.py asks it",
    "AWS::S3::BucketPolicy": "access.py asks it; moto ignores its conditions, so that the TLS rule"
    " would forbid all",
}

LOCAL_CODE = "local"  # bucket name in the translated template that stands for the project folder


class Stack:
    """The created stack; every name and reference of the template can be looked up in it."""

    def __init__(
        self,
        root: Path,
        parameters: Mapping[str, str],
        client: Callable[[str], Any],
        template: str = "template.yaml",
        name: str = "",
    ) -> None:
        self._root = root
        self._client = client
        self.name = name or f"ses-mail-{parameters['Environment']}"
        deployed = translated(root, template, parameters)
        defaults = {
            key: str(p["Default"]) for key, p in deployed["Parameters"].items() if "Default" in p
        }
        self._parameters = {**defaults, **parameters}
        names = self._resource_map(deployed)
        self.resources: dict[str, Any] = {
            logical_id: resource
            for logical_id, resource in deployed["Resources"].items()
            if names.lazy_condition_map.get(resource.get("Condition"), True)
        }
        self._refuse_unknown()
        self._references = self._adapter_references(names)
        self.resources = self._refer(self.resources)
        self._created = self._create(deployed)
        self.outputs: dict[str, str] = {
            output["OutputKey"]: output["OutputValue"]
            for output in client("cloudformation")
            .describe_stacks(StackName=self.name)["Stacks"][0]
            .get("Outputs", [])
        }
        self.access = Access(self)
        self.access.check()
        for kind in ADAPTER:
            for logical_id in self.of_type(kind):
                getattr(self, f"_{kind.split('::')[-1]}")(self.properties(logical_id))

    def of_type(self, kind: str) -> list[str]:
        """Logical ids of the resources of a type."""
        return [key for key, resource in self.resources.items() if resource["Type"] == kind]

    def properties(self, logical_id: str) -> Any:
        """A resource's properties with every intrinsic function resolved."""
        return self._resolve(self.resources[logical_id].get("Properties", {}))

    def physical_id(self, logical_id: str) -> str:
        """What `!Ref` gives: queue URL, topic ARN, state machine ARN, or a name."""
        return str(self._resolve(self._refer({"Ref": logical_id})))

    def attribute(self, logical_id: str, name: str) -> str:
        """What `!GetAtt` gives."""
        return str(self._resolve(self._refer({"Fn::GetAtt": [logical_id, name]})))

    def definition(self, logical_id: str) -> str:
        """A state machine's definition as JSON, with the substitutions of the template."""
        properties = self.properties(logical_id)
        substitutions = properties.get("DefinitionSubstitutions", {})
        text = (self._root / properties["DefinitionS3Location"]["Key"]).read_text()
        for name, value in substitutions.items():
            text = text.replace(f"${{{name}}}", str(value))
        if "${" in text:
            missing = text.split("${", 1)[1].split("}", 1)[0]
            raise ValueError(f"no substitution for ${{{missing}}} in the state machine")
        return json.dumps(yaml.safe_load(text))

    # -- the part that moto's CloudFormation creates -----------------------------------------------

    def _resource_map(self, template: Mapping[str, Any]) -> Any:
        """A map that resolves parameters and conditions, without creating anything."""
        resolver = ResourceMap(
            stack_id="local",
            stack_name=self.name,
            parameters=dict(self._parameters),
            tags={},
            region_name=REGION,
            account_id=ACCOUNT,
            template={**template, "Resources": {"None": {}}, "Outputs": {}},
            cross_stack_resources={},
        )
        resolver.load()
        return resolver

    def _refuse_unknown(self) -> None:
        known = MOTO | set(ADAPTER) | set(NO_EFFECT)
        unknown = {
            f"{key} ({resource['Type']})"
            for key, resource in self.resources.items()
            if resource["Type"] not in known
        }
        if unknown:
            raise NotImplementedError(
                f"the embedded cloud does not know {', '.join(sorted(unknown))}: local/stack.py"
            )

    def _adapter_references(self, names: Any) -> dict[str, dict[str, str]]:
        """Of resources that moto does not create: {logical id: {"Ref": …, attribute: …}}."""
        references: dict[str, dict[str, str]] = {}
        for key, resource in self.resources.items():
            kind, properties = resource["Type"], resource.get("Properties", {})
            if kind == "AWS::SES::ReceiptRuleSet":
                name = clean_json(properties["RuleSetName"], names)
                references[key] = {"Ref": name}
            elif kind == "AWS::SES::ReceiptRule":
                references[key] = {"Ref": clean_json(properties["Rule"]["Name"], names)}
            elif kind == "AWS::Pipes::Pipe":
                name = clean_json(properties["Name"], names)
                arn = f"arn:aws:pipes:{REGION}:{ACCOUNT}:pipe/{name}"
                references[key] = {"Ref": name, "Arn": arn}
            elif kind == "AWS::StepFunctions::StateMachine":
                name = clean_json(properties["StateMachineName"], names)
                arn = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{name}"
                references[key] = {"Ref": arn, "Arn": arn, "Name": name}
            elif kind == "AWS::SSM::Document":
                references[key] = {"Ref": clean_json(properties["Name"], names)}
            elif kind == "AWS::Events::Rule":
                name = properties.get("Name", f"{self.name}-{key}")
                arn = f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{clean_json(name, names)}"
                references[key] = {"Ref": name, "Arn": arn}
            elif kind == "AWS::Logs::LogGroup":
                # moto's has no asterisk at the end.
                name = clean_json(properties["LogGroupName"], names)
                arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{name}:*"
                references[key] = {"Ref": name, "Arn": arn}
            elif kind == "AWS::Lambda::LayerVersion":
                references[key] = {"Ref": properties["Content"]["S3Key"]}
        return references

    def _refer(self, node: Any) -> Any:
        """Replace references to what moto does not create by the names."""
        if isinstance(node, dict):
            if node.keys() == {"Ref"} and node["Ref"] in self._references:
                return self._references[node["Ref"]]["Ref"]
            if node.keys() == {"Fn::GetAtt"} and node["Fn::GetAtt"][0] in self._references:
                return self._references[node["Fn::GetAtt"][0]][node["Fn::GetAtt"][1]]
            return {key: self._refer(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self._refer(value) for value in node]
        if isinstance(node, str):
            for key, reference in self._references.items():
                for name, value in reference.items():
                    part = key if name == "Ref" else f"{key}.{name}"
                    node = node.replace(f"${{{part}}}", value)
        return node

    def _create(self, deployed: Mapping[str, Any]) -> Any:
        template = copy.deepcopy({**deployed, "Resources": {}})
        template["Outputs"] = self._refer(template.get("Outputs", {}))
        for key, resource in self.resources.items():
            if resource["Type"] in MOTO:
                created = copy.deepcopy(resource)
                created.pop("DependsOn", None)
                if resource["Type"] == "AWS::Lambda::Function":
                    # The handlers run from the project's folder, see runtime.py.
                    created["Properties"]["Code"] = {"ZipFile": "#"}
                    created["Properties"].pop("Layers", None)
                template["Resources"][key] = created
        self._client("cloudformation").create_stack(
            StackName=self.name,
            TemplateBody=json.dumps(template),
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in self._parameters.items()
            ],
            Capabilities=["CAPABILITY_IAM"],
        )
        stack = cloudformation_backends[ACCOUNT][REGION].get_stack(self.name)
        for key in template["Resources"]:
            if stack.resource_map.get(key) is None:
                raise NotImplementedError(f"moto did not create {key}")
        return stack.resource_map

    def _resolve(self, node: Any) -> Any:
        return clean_json(copy.deepcopy(node), self._created)

    # -- the part that is created through the API, by type -----------------------------------------

    def _TopicPolicy(self, properties: Any) -> None:  # noqa: N802
        for topic in properties["Topics"]:
            self._client("sns").set_topic_attributes(
                TopicArn=topic,
                AttributeName="Policy",
                AttributeValue=json.dumps(properties["PolicyDocument"]),
            )

    def _QueuePolicy(self, properties: Any) -> None:  # noqa: N802
        for queue in properties["Queues"]:
            self._client("sqs").set_queue_attributes(
                QueueUrl=queue, Attributes={"Policy": json.dumps(properties["PolicyDocument"])}
            )

    def _Subscription(self, properties: Any) -> None:  # noqa: N802
        attributes = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in properties.items()
            if name not in {"TopicArn", "Protocol", "Endpoint", "Region"}
        }
        self._client("sns").subscribe(
            TopicArn=properties["TopicArn"],
            Protocol=properties["Protocol"],
            Endpoint=properties["Endpoint"],
            Attributes=attributes,
        )

    def _StateMachine(self, properties: Any) -> None:  # noqa: N802
        logical_id = next(
            key
            for key, names in self._references.items()
            if names.get("Name") == properties["StateMachineName"]
        )
        self._client("stepfunctions").create_state_machine(
            name=properties["StateMachineName"],
            definition=self.definition(logical_id),
            roleArn=properties["RoleArn"],
            type=properties["StateMachineType"],
            # Without the logging configuration: moto would log into the group with all data.
        )

    def _Pipe(self, properties: Any) -> None:  # noqa: N802
        self._client("pipes").create_pipe(
            Name=properties["Name"],
            Source=properties["Source"],
            SourceParameters=properties["SourceParameters"],
            Target=properties["Target"],
            TargetParameters=properties["TargetParameters"],
            RoleArn=properties["RoleArn"],
            DesiredState=properties.get("DesiredState", "RUNNING"),
        )

    def _Rule(self, properties: Any) -> None:  # noqa: N802
        """Rules of EventBridge: events.py acts on them, since moto emits no status changes."""

    def _Document(self, properties: Any) -> None:  # noqa: N802
        # moto's CloudFormation keeps the content as an object, which its API cannot give out.
        self._client("ssm").create_document(
            Name=properties["Name"],
            DocumentType=properties["DocumentType"],
            DocumentFormat="JSON",
            Content=json.dumps(properties["Content"]),
        )

    def _Alarm(self, properties: Any) -> None:  # noqa: N802
        properties["Threshold"] = float(properties["Threshold"])
        self._client("cloudwatch").put_metric_alarm(**properties)

    def _QueryDefinition(self, properties: Any) -> None:  # noqa: N802
        self._client("logs").put_query_definition(
            name=properties["Name"],
            queryString=properties["QueryString"],
            logGroupNames=properties["LogGroupNames"],
        )

    def _Stack(self, properties: Any) -> None:  # noqa: N802
        # CloudFormation gives a nested stack's parameters as text.
        parameters = {name: str(value) for name, value in properties["Parameters"].items()}
        template = properties["TemplateURL"]
        Stack(self._root, parameters, self._client, template, f"{self.name}-{Path(template).stem}")

    def _ReceiptRuleSet(self, properties: Any) -> None:  # noqa: N802
        self._client("ses").create_receipt_rule_set(RuleSetName=properties["RuleSetName"])

    def _ReceiptRule(self, properties: Any) -> None:  # noqa: N802
        ses = self._client("ses")
        existing = {entry["Name"] for entry in ses.list_receipt_rule_sets()["RuleSets"]}
        if properties["RuleSetName"] not in existing:
            # Parameter ReceiptRuleSet names a set that another environment would have created.
            ses.create_receipt_rule_set(RuleSetName=properties["RuleSetName"])
        ses.create_receipt_rule(RuleSetName=properties["RuleSetName"], Rule=properties["Rule"])
        ses.set_active_receipt_rule_set(RuleSetName=properties["RuleSetName"])


def include(node: Any, root: Path) -> Any:
    """The template with the files of its `AWS::Include`s, as CloudFormation reads them from S3."""
    if isinstance(node, dict):
        if node.keys() == {"Fn::Transform"} and node["Fn::Transform"]["Name"] == "AWS::Include":
            file = root / node["Fn::Transform"]["Parameters"]["Location"]
            return include(yaml.safe_load(file.read_text()), root)  # refuses short forms
        return {key: include(value, root) for key, value in node.items()}
    if isinstance(node, list):
        return [include(value, root) for value in node]
    return node


def translated(root: Path, template_file: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """A template as CloudFormation gets it: files included, SAM's resources and events expanded."""
    template = include(yaml_parse((root / template_file).read_text()), root)
    _move_code(template)
    translator = Translator({}, Parser(), boto_session=boto3.session.Session(region_name=REGION))
    return dict(translator.translate(template, dict(parameters)))


def _move_code(node: Any) -> None:
    """Local folders as S3 addresses, the only ones that the translator takes."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"CodeUri", "ContentUri", "DefinitionUri"} and isinstance(value, str):
                node[key] = f"s3://{LOCAL_CODE}/{value}"
            else:
                _move_code(value)
    elif isinstance(node, list):
        for value in node:
            _move_code(value)
