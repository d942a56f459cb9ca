"""What `sam local invoke` needs to meet `make local`.

`sam local invoke` fills variables with logical ids, and passes on only variables that the template
declares. So `env.json` has the values, and `template.yaml` the same functions, which declare what
leads to this machine instead of AWS and Google.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

from local.cloud import HOST, Cloud

# The name under which a container finds the machine that it runs on.
CONTAINER_HOST = "host.docker.internal"

_LAYER = "ToThisMachine"
_CA_FILE = "google-ca.pem"
_KEPT = ("FunctionName", "Handler", "Runtime", "Architectures", "MemorySize", "Timeout")


def write(cloud: Cloud, directory: Path) -> None:
    """Write env.json, template.yaml and the layer that both of them need."""
    layer = directory / "layer"
    (layer / "python").mkdir(parents=True, exist_ok=True)
    shutil.copy(cloud.google.ca_file, layer / _CA_FILE)
    # httplib2 goes past HTTPS_PROXY without it.
    shutil.copy(Path(sysconfig.get_paths()["purelib"]) / "socks.py", layer / "python")
    for name, document in (("env.json", variables(cloud)), ("template.yaml", template(cloud))):
        (directory / name).write_text(json.dumps(document, indent=2) + "\n")


def variables(cloud: Cloud) -> dict[str, dict[str, str]]:
    """Every function's variables under its logical id, as a container can use them."""
    region = cloud.client("sqs").meta.region_name
    to_here = {
        "AWS_REGION": region,  # SAM would take the developer's
        "AWS_DEFAULT_REGION": region,
        # Any other address is one that a container reaches.
        "AWS_ENDPOINT_URL": cloud.aws_url.replace(HOST, CONTAINER_HOST),
        "HTTPS_PROXY": cloud.google.url.replace(HOST, CONTAINER_HOST),
        "HTTPLIB2_CA_CERTS": f"/opt/{_CA_FILE}",  # where Lambda puts the files of a layer
    }
    return {logical_id: {**environment, **to_here} for logical_id, environment in _functions(cloud)}


def template(cloud: Cloud) -> dict[str, Any]:
    """The functions of the stack with the layers that `sam build` made, and one more."""
    source = yaml_parse((cloud.root / "template.yaml").read_text())["Resources"]
    built = {
        resource["Properties"]["ContentUri"]: logical_id
        for logical_id, resource in source.items()
        if resource["Type"] == "AWS::Serverless::LayerVersion"
    }
    layers = {name: _layer_version(f"../.aws-sam/build/{name}") for name in built.values()}
    layers[_LAYER] = _layer_version("layer")
    functions = {}
    for logical_id, environment in variables(cloud).items():
        properties = cloud.stack.properties(logical_id)
        names = [built[folder] for folder in properties.get("Layers", [])]
        functions[logical_id] = {
            "Type": "AWS::Serverless::Function",
            "Properties": {
                **{name: properties[name] for name in _KEPT},
                "CodeUri": "../functions",
                "Layers": [{"Ref": name} for name in [*names, _LAYER]],
                "Environment": {"Variables": environment},
            },
        }
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Transform": "AWS::Serverless-2016-10-31",
        "Resources": {**layers, **functions},
    }


def _functions(cloud: Cloud) -> list[tuple[str, dict[str, str]]]:
    named = cloud.runtime.functions
    return [
        (logical_id, dict(named[cloud.resource(logical_id)].environment))
        for logical_id in cloud.stack.of_type("AWS::Lambda::Function")
    ]


def _layer_version(uri: str) -> dict[str, Any]:
    return {"Type": "AWS::Serverless::LayerVersion", "Properties": {"ContentUri": uri}}
