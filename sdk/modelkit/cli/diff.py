"""`modelkit diff`: what is different between two versions."""

from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console

if TYPE_CHECKING:
    from modelkit.versions.diff import Change, Difference

__all__ = ["command"]


def command(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="A version: chat:v2; v2 alone in a model folder.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Another one; v3 alone is of the same model.")],
    *,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Speak HTTP, unencrypted, to a registry that has no TLS.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is different between two versions.

    Config, methods and what of them breaks callers, files, weights, dependencies, image, and how the figures of `modelkit bench` moved.
    """
    from modelkit.versions.diff import diff
    from modelkit.versions.names import open_version, version_reference

    first = version_reference(old)
    second = version_reference(new, first.at())
    with (
        console.status("comparing"),
        open_version(first, plain_http=plain_http, on_note=console.info) as before,
        open_version(second, plain_http=plain_http, on_note=console.info) as after,
    ):
        found = diff(before, after)
    if as_json:
        console.json({"old": str(first), "new": str(second), **found.as_json()})
        return
    text = _text(found)
    if text:
        console.result(text)
    else:
        console.info(f"{first} and {second} are the same")


def _text(found: "Difference") -> str:
    sections = []
    for name in ("config", "methods", "files", "weights", "dependencies", "image", "record"):
        changes: tuple[Change, ...] = getattr(found, name)
        if changes:
            sections.append("\n".join([console.paint(name, "bold"), *map(_line, changes)]))
    if found.breaking:
        lines = [f"  ! {change}" for change in found.breaking]
        sections.append("\n".join([console.paint("breaks callers", "bold"), *lines]))
    return "\n".join(sections)


def _line(change: "Change") -> str:
    if change.old is None:
        return f"  + {change.name}: {change.new}"
    if change.new is None:
        return f"  - {change.name}: {change.old}"
    return f"  ~ {change.name}: {change.old} -> {change.new}"
