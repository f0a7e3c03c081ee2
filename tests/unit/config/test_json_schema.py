"""The JSON Schema is what the models say, in what editors understand, and docs/ has its newest version."""

import json
import re

import pytest
import yaml

from modelkit.config import Config, json_schema
from modelkit.config.models import Section
from paths import ROOT, load_script

MODELS = ROOT / "tests" / "data" / "models"
GOOD = sorted(path.name for path in MODELS.iterdir() if (path / "config.yaml").exists())


def resolve(schema, root):
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def errors(value, schema, root, path="$"):
    """Yield where a value breaks a schema: the part of JSON Schema that ours uses."""
    schema = resolve(schema, root)
    if "anyOf" in schema:
        found = [list(errors(value, choice, root, path)) for choice in schema["anyOf"]]
        if all(found):
            yield from found[0]
        return
    if not fits(value, schema):
        yield path
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{path}.{key}" for key in schema.get("required", ()) if key not in value)
        for key, below in value.items():
            if key in properties:
                yield from errors(below, properties[key], root, f"{path}.{key}")
            elif schema.get("additionalProperties") is False:
                yield f"{path}.{key}"
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from errors(item, schema["items"], root, f"{path}[{index}]")


TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


def fits(value, schema):
    if "type" in schema:
        is_bool = isinstance(value, bool) and schema["type"] != "boolean"
        if is_bool or not isinstance(value, TYPES[schema["type"]]):
            return False
    return (
        value in schema.get("enum", [value])
        and value == schema.get("const", value)
        and ("pattern" not in schema or re.search(schema["pattern"], value))
        and ("minimum" not in schema or value >= schema["minimum"])
        and ("maximum" not in schema or value <= schema["maximum"])
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("minLength" not in schema or len(value) >= schema["minLength"])
        and ("maxLength" not in schema or len(value) <= schema["maxLength"])
    )


def test_the_schema(snapshot):
    assert json_schema() == snapshot


def test_the_docs_are_up_to_date(monkeypatch):
    script = load_script("generate_config_docs")
    monkeypatch.setattr("sys.argv", ["generate_config_docs.py", "--check"])
    assert script.main() == 0


@pytest.mark.parametrize("name", GOOD)
def test_every_good_folder_fits_it(name):
    schema = json_schema()
    for path in (MODELS / name).glob("config.yaml"):
        assert list(errors(yaml.safe_load(path.read_text()), schema, schema)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("typos", {"$.model.descripton", "$.engin", "$.compute.num_acelerators", "$.compute.min_replicas", "$.cpu_memory"}),
        ("secrets-inside", {"$.checkpoints.hf_token", "$.secrets[0].value"}),
        (
            "units",
            {
                "$.engine.start_timeout", "$.compute.cpu_limit", "$.compute.cpu_memory", "$.compute.accelerator_memory",
                "$.server.drain_timeout", "$.server.max_message_bytes",
            },
        ),
        ("missing", {"$.model", "$.description"}),
    ],
)  # fmt: skip
def test_an_editor_finds_what_a_schema_can_find(name, expected):
    schema = json_schema()
    data = yaml.safe_load((MODELS / "broken" / name / "config.yaml").read_text())
    assert expected <= set(errors(data, schema, schema))


def test_every_key_has_a_description():
    missing = [
        f"{section.__name__}.{name}"
        for section in (Config, *Section.__subclasses__())
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert missing == []


def test_it_is_json_that_says_no_more_than_it_should():
    text = json.dumps(json_schema())
    assert '"title": "Cpu' not in text
    assert '"ge"' not in text
    assert '"gt"' not in text
    assert '"default": 30.0' not in text, "a parsed quantity is no value that can be written"
