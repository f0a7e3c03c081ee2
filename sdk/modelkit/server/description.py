"""Signatures as the messages that Describe sends."""

from typing import Any

from modelkit.codec import encode
from modelkit.inference.v1 import inference_pb2 as pb
from modelkit.model import REQUIRED, ArgumentSpec, Limits, Signature, TypeSpec

__all__ = ["describe_signature"]


def describe_signature(signature: Signature) -> pb.Method:
    """Return the description of one method."""
    return pb.Method(
        name=signature.name,
        kind=f"METHOD_KIND_{signature.kind.name}",
        description=signature.description,
        arguments=[_field(spec) for spec in signature.arguments],
        result=_type(signature.result),
    )


def _field(spec: ArgumentSpec) -> pb.Field:
    return pb.Field(
        name=spec.name,
        type=_type(spec.type),
        description=spec.description,
        required=spec.required,
        default=None if spec.required else _value(spec.default),
        limits=_limits(spec.limits),
        streamed=spec.streamed,
    )


def _type(spec: TypeSpec) -> pb.Type:
    return pb.Type(
        kind=f"TYPE_KIND_{spec.kind.name}",
        args=[_type(member) for member in spec.args],
        name=spec.name,
        fields=[_field(member) for member in spec.fields],
        choices=[encode(choice) for choice in spec.choices],
        dtype=spec.dtype,
    )


def _limits(limits: Limits) -> pb.Limits | None:
    if limits == Limits():
        return None
    return pb.Limits(
        minimum=_bound(limits.minimum),
        maximum=_bound(limits.maximum),
        exclusive_minimum=_bound(limits.exclusive_minimum),
        exclusive_maximum=_bound(limits.exclusive_maximum),
        multiple_of=_bound(limits.multiple_of),
        min_length=limits.min_length,
        max_length=limits.max_length,
        pattern=limits.pattern or "",
        choices=[encode(choice) for choice in limits.choices],
    )


def _bound(value: float | None) -> pb.Value | None:
    return None if value is None else encode(value)


def _value(default: Any) -> pb.Value | None:
    """Return a default where it is a value that can be sent; REQUIRED and an author's own objects are not."""
    if default is REQUIRED:
        return None
    try:
        return encode(default)
    except (TypeError, ValueError):
        return None
