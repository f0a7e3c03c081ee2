"""Checks manifests offline: Kubernetes' own kinds by its schemas, others by what tests/data/crds says of them."""

import copy
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

CRDS = Path(__file__).parent / "data/crds"
VERSION = "1.31"


def check(item):
    """Raise where the object is not what its kind is defined as; a field that is not known is an error."""
    schema = _crds().get((item["apiVersion"], item["kind"]))
    if schema is None:
        kubernetes_validate.validate(item, VERSION, strict=True)
        return
    assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
    pods = []
    jsonschema.Draft202012Validator(_strict(copy.deepcopy(schema))).validate(item["spec"])
    _find_pods(schema, item["spec"], pods)
    for pod in pods:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **pod}, VERSION, strict=True)


def _crds():
    documents = [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]
    return {(each["apiVersion"], each["kind"]): each["spec"] for each in documents}


def _strict(schema):
    if schema.pop("$pod", False):
        return {"type": "object"}
    for name, each in schema.get("properties", {}).items():
        schema["properties"][name] = _strict(dict(each))
    if "items" in schema:
        schema["items"] = _strict(dict(schema["items"]))
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def _find_pods(schema, value, found):
    if schema.get("$pod"):
        found.append(value)
    elif isinstance(value, dict):
        for name, each in value.items():
            _find_pods(schema.get("properties", {}).get(name, {}), each, found)
    elif isinstance(value, list):
        for each in value:
            _find_pods(schema.get("items", {}), each, found)
