"""Signatures as JSON Schema: the description at /v1/methods and the OpenAPI document at /openapi.json.

Source: https://spec.openapis.org/oas/v3.1.0, whose schemas are JSON Schema 2020-12.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from modelkit.model import (
    REQUIRED,
    ArgumentSpec,
    Limits,
    MethodKind,
    Signature,
    TypeKind,
    TypeSpec,
    describe_type,
)
from modelkit.server.http import json_codec

__all__ = ["describe_model", "openapi_document"]

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/"
_OPENAI_BODIES: Final[Mapping[str, tuple[str, Schema]]] = {
    "/chat/completions": (
        "Answer a chat; `stream: true` sends it as server-sent events.",
        {"messages": {"type": "array", "items": {"type": "object"}}},
    ),
    "/completions": ("Continue a prompt.", {"prompt": {}}),
    "/embeddings": ("Embed texts, where the engine can.", {"input": {}}),
    "/responses": ("Answer in the Responses API, where the engine has it.", {"input": {}}),
}


def describe_model(info: Mapping[str, str], signatures: Mapping[str, Signature], *, ready: bool) -> Schema:
    """Return what GET /v1/methods says: the model, and each method with JSON Schemas of arguments and result."""
    schemas = _Schemas("#/$defs/")
    methods = [_describe_method(signature, schemas) for signature in signatures.values()]
    return {**info, "ready": ready, "methods": methods, "$defs": schemas.named}


def _describe_method(signature: Signature, schemas: "_Schemas") -> Schema:
    return {
        "name": signature.name,
        "kind": str(signature.kind),
        "description": signature.description,
        "streamed_argument": signature.streamed or None,
        "arguments": [
            {
                "name": spec.name,
                "type": describe_type(spec.type),
                "description": spec.description,
                "required": spec.required and not spec.streamed,
                "schema": schemas.argument(spec),
            }
            for spec in signature.arguments
        ],
        "result": {"type": describe_type(signature.result), "schema": schemas.of(signature.result)},
    }


def openapi_document(
    info: Mapping[str, str], signatures: Mapping[str, Signature], *, openai: bool, api_key: bool
) -> Schema:
    """Return the OpenAPI 3.1 document of a server. `openai` adds OpenAI's routes, `api_key` says one is needed."""
    schemas = _Schemas(_REF)
    paths: Schema = {
        f"/v1/methods/{name}": {"post": _operation(one, schemas)} for name, one in signatures.items()
    }
    paths["/v1/methods"] = {"get": _simple("list_methods", "The model and its methods.")}
    paths["/health"] = {"get": _simple("health", "Whether the process is alive.", key=False)}
    paths["/ready"] = {
        "get": _simple("ready", "Whether calls are taken; 503 and the reason where not.", key=False)
    }
    paths["/metrics"] = {"get": _simple("metrics", "Counters and timings for Prometheus.", "text/plain")}
    if openai:
        paths["/v1/models"] = {"get": _simple("list_models", "The model's id, as OpenAI lists models.")}
        for endpoint, (summary, body) in _OPENAI_BODIES.items():
            paths[f"/v1{endpoint}"] = {"post": _openai_operation(endpoint, summary, body)}
    components: Schema = {"schemas": {"Error": _ERROR, "Call": _CALL, **schemas.named}}
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": info.get("model_id") or "model",
            "description": info.get("description", ""),
            "version": info["modelkit_version"],
        },
        "paths": paths,
        "components": components,
    }
    if api_key:
        components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"api_key": []}]
    return document


# ------------------------------------------------------------------------------------------------------------ schemas


class _Schemas:
    """Makes schemas; objects and values with "$" keys are kept in `named` and referred to."""

    def __init__(self, prefix: str) -> None:
        self.named: Schema = {}
        self._prefix = prefix
        # The objects named so far; a list, for defaults inside a spec need not be hashable.
        self._objects: list[tuple[TypeSpec, str]] = []

    def arguments(self, signature: Signature) -> Schema:
        """Return the schema of a call's arguments; the streamed one is not among them."""
        specs = [spec for spec in signature.arguments if not spec.streamed]
        return self._object(specs) | {"additionalProperties": False}

    def argument(self, spec: ArgumentSpec) -> Schema:
        """Return the schema of one argument or member, with its limits, description and default."""
        schema = _limited(self.of(spec.type), spec.limits)
        if spec.description:
            schema["description"] = spec.description
        if spec.default is not REQUIRED:
            # A default that cannot be sent is an author's own object: callers only need to know that there is one.
            with suppress(TypeError, ValueError):
                schema["default"] = json_codec.to_json(spec.default)
        return schema

    def of(self, spec: TypeSpec) -> Schema:
        """Return the schema of a type."""
        plain = _PLAIN.get(spec.kind)
        if plain is not None:
            return dict(plain)
        special = _SPECIAL.get(spec.kind)
        if special is not None:
            return self._refer(spec.kind.capitalize(), special)
        return _COMPOUND[spec.kind](self, spec)

    def list_of(self, spec: TypeSpec) -> Schema:
        return {"type": "array", "items": self.of(spec.args[0]) if spec.args else {}}

    def tuple_of(self, spec: TypeSpec) -> Schema:
        num = len(spec.args)
        items = [self.of(member) for member in spec.args]
        return {"type": "array", "prefixItems": items, "minItems": num, "maxItems": num}

    def map_of(self, spec: TypeSpec) -> Schema:
        return {"type": "object", "additionalProperties": self.of(spec.args[1]) if spec.args else {}}

    def union_of(self, spec: TypeSpec) -> Schema:
        return {"anyOf": [self.of(member) for member in spec.args]}

    def choice_of(self, spec: TypeSpec) -> Schema:
        return {"enum": [json_codec.to_json(choice) for choice in spec.choices]}

    def object_of(self, spec: TypeSpec) -> Schema:
        """Refer to a named schema. An object without members stands inside itself and refers to the outer one."""
        for known, name in reversed(self._objects):
            if known == spec or (known.name == spec.name and not spec.fields):
                return {"$ref": self._prefix + name}
        name = self._free_name(spec.name or "Object")
        self._objects.append((spec, name))
        self.named[name] = {}  # taken, while its members are read
        self.named[name] = self._object(spec.fields)
        return {"$ref": self._prefix + name}

    def _object(self, specs: Sequence[ArgumentSpec]) -> Schema:
        schema: Schema = {"type": "object", "properties": {spec.name: self.argument(spec) for spec in specs}}
        required = [spec.name for spec in specs if spec.required]
        return schema | {"required": required} if required else schema

    def _refer(self, name: str, schema: Schema) -> Schema:
        self.named.setdefault(name, schema)
        return {"$ref": self._prefix + name}

    def _free_name(self, name: str) -> str:
        """Two modules may have a class of the same name, and an author one that is called like ours."""
        taken = {*self.named, "Error", "Call", *(kind.capitalize() for kind in _SPECIAL)}
        candidates = (name if number == 1 else f"{name}{number}" for number in range(1, len(taken) + 2))
        return next(candidate for candidate in candidates if candidate not in taken)


_COMPOUND: Final = {
    TypeKind.LIST: _Schemas.list_of,
    TypeKind.TUPLE: _Schemas.tuple_of,
    TypeKind.MAP: _Schemas.map_of,
    TypeKind.UNION: _Schemas.union_of,
    TypeKind.CHOICE: _Schemas.choice_of,
    TypeKind.OBJECT: _Schemas.object_of,
}

_PLAIN: Final[Mapping[TypeKind, Schema]] = {
    TypeKind.ANY: {},
    TypeKind.NULL: {"type": "null"},
    TypeKind.BOOL: {"type": "boolean"},
    TypeKind.INT: {"type": "integer"},
    TypeKind.FLOAT: {"type": "number"},
    TypeKind.STRING: {"type": "string"},
}


def _marked(key: str, value: Schema, **beside: Schema) -> Schema:
    properties = {key: value, **beside}
    return {"type": "object", "properties": properties, "required": [key], "additionalProperties": False}


_URL: Final[Schema] = {"type": "string", "pattern": "^data:", "description": "A data URL."}
_BASE64: Final[Schema] = {"type": "string", "contentEncoding": "base64"}
_SPECIAL: Final[Mapping[TypeKind, Schema]] = {
    TypeKind.BYTES: {"anyOf": [_marked("$bytes", _BASE64), _URL]},
    TypeKind.TENSOR: {
        "anyOf": [
            _marked(
                "$tensor",
                {
                    "type": "object",
                    "properties": {
                        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                        "dtype": {"type": "string"},
                        "data": {"anyOf": [_BASE64, {"type": "array"}]},
                    },
                    "required": ["shape", "dtype", "data"],
                },
            ),
            {"type": "array", "description": "Nested lists of numbers."},
        ]
    },
    TypeKind.IMAGE: {"anyOf": [_marked("$image", _URL), _URL]},
    TypeKind.AUDIO: {"anyOf": [_marked("$audio", _URL, sample_rate_hz={"type": "integer"}), _URL]},
    TypeKind.VIDEO: {"anyOf": [_marked("$video", _URL), _URL]},
    TypeKind.TEXT: {
        "anyOf": [
            {"type": "string"},
            _marked("$text", {"type": "string"}, token_ids={"type": "array", "items": {"type": "integer"}}),
        ]
    },
}

_NUMBER_LIMITS: Final = {
    "minimum": "minimum",
    "maximum": "maximum",
    "exclusive_minimum": "exclusiveMinimum",
    "exclusive_maximum": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
_LENGTHS: Final = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}


def _limited(schema: Schema, limits: Limits) -> Schema:
    """Add limits to a schema; to those members of a union that are not null."""
    if limits == Limits():
        return schema
    if "anyOf" in schema:
        return schema | {"anyOf": [_limited(member, limits) for member in schema["anyOf"]]}
    if schema.get("type") == "null":
        return schema
    found = {theirs: getattr(limits, ours) for ours, theirs in _NUMBER_LIMITS.items()}
    if (names := _LENGTHS.get(schema.get("type", ""))) is not None:
        found |= dict(zip(names, (limits.min_length, limits.max_length), strict=True))
    found = {name: value for name, value in found.items() if value not in (None, "")}
    if limits.choices:
        found["enum"] = [json_codec.to_json(choice) for choice in limits.choices]
    return schema | found


# --------------------------------------------------------------------------------------------------------- operations

_ERROR: Final[Schema] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "cure": {"type": "string", "description": "What to do about it."},
                "violations": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
# What is told of a call beside its result.
_CALL: Final[Schema] = {
    "type": "object",
    "properties": {
        "usage": {
            "type": ["object", "null"],
            "properties": {
                name: {"type": "integer"} for name in ("prompt_tokens", "output_tokens", "cached_tokens")
            },
        },
        "request_id": {"type": "string"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_FAILED: Final[Schema] = {
    "description": "The call failed.",
    "content": {"application/json": {"schema": {"$ref": _REF + "Error"}}},
}


def _operation(signature: Signature, schemas: _Schemas) -> Schema:
    summary, _, rest = signature.description.partition("\n")
    arguments = schemas.arguments(signature)
    content: Schema = {"application/json": {"schema": arguments}}
    if signature.kind is MethodKind.BIDIRECTIONAL:
        content = {"application/x-ndjson": {"schema": {"type": "string"}}}
        rest = f"{rest}\n\nThe first line is the object of arguments, each further line one item.".strip()
    elif any(
        spec.type.kind in (TypeKind.IMAGE, TypeKind.AUDIO, TypeKind.VIDEO, TypeKind.BYTES)
        for spec in signature.arguments
    ):
        content["multipart/form-data"] = {"schema": {"type": "object"}}
    operation: Schema = {
        "operationId": signature.name,
        "summary": summary,
        "requestBody": {"content": content, "required": bool(arguments.get("required"))},
        "responses": {"200": _answer(signature, schemas), "default": _FAILED},
    }
    if rest.strip():
        operation["description"] = rest.strip()
    return operation


def _answer(signature: Signature, schemas: _Schemas) -> Schema:
    result = schemas.of(signature.result)
    streams = signature.kind is not MethodKind.UNARY
    body = {"type": "array", "items": result} if streams else result
    whole = {"allOf": [{"$ref": _REF + "Call"}, {"type": "object", "properties": {"result": body}}]}
    content: Schema = {"application/json": {"schema": whole}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "The result.", "content": content}


def _openai_operation(endpoint: str, summary: str, body: Schema) -> Schema:
    schema = {"type": "object", "properties": body, "required": list(body)}
    return {
        "operationId": "openai" + endpoint.replace("/", "_"),
        "summary": summary,
        "externalDocs": {"url": "https://platform.openai.com/docs/api-reference"},
        "requestBody": {"content": {"application/json": {"schema": schema}}, "required": True},
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            "default": _FAILED,
        },
    }


def _simple(name: str, summary: str, media_type: str = "application/json", *, key: bool = True) -> Schema:
    schema = {"type": "object"} if media_type == "application/json" else {"type": "string"}
    operation: Schema = {
        "operationId": f"modelkit_{name}",
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media_type: {"schema": schema}}}},
    }
    return operation if key else operation | {"security": []}
