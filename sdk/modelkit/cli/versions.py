"""`modelkit versions`: what versions of a model there are, or of all models on this machine."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.table import table
from modelkit.progress import size_text

if TYPE_CHECKING:
    from modelkit.registry import LayoutReference, Reference
    from modelkit.versions.catalog import Entry

__all__ = ["command"]


def command(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REF", help="A model, a repository, or a model folder. Default: all on this machine."
        ),
    ] = None,
    *,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Speak HTTP, unencrypted, to a registry that has no TLS.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the versions of a model."""
    from modelkit.versions.catalog import kept_models
    from modelkit.versions.names import model_reference

    models = list(kept_models()) if reference is None else [model_reference(reference)]
    with console.status("looking"):
        entries = [entry for model in models for entry in _entries(model, plain_http=plain_http)]
    if as_json:
        console.json([entry.as_json() for entry in entries])
        return
    if entries:
        console.result(_table(entries))
    else:
        where = f"of {models[0].name}" if reference is not None else "on this machine"
        console.info(f"there are no versions {where}; `modelkit upload PATH` makes the first")


def _entries(model: "Reference | LayoutReference", *, plain_http: bool) -> "list[Entry]":
    from modelkit.registry import LayoutReference, open_store
    from modelkit.versions.catalog import list_entries

    with open_store(model, plain_http=plain_http, on_note=console.info) as store:
        return list_entries(store, with_records=isinstance(model, LayoutReference))


def _table(entries: "Sequence[Entry]") -> str:
    rows = [("version", "digest", "package", "weights", "image", "also", "measured")]
    for entry in entries:
        if entry.problem:
            rows.append((f"{entry.name}:{entry.tag}", entry.digest[:19], entry.problem, "", "", "", ""))
            continue
        rows.append(
            (
                f"{entry.name}:{entry.tag}",
                entry.digest[:19],
                size_text(entry.package_bytes),
                size_text(entry.weights_bytes) if entry.weights_bytes else "-",
                " ".join(entry.platforms) or "-",
                " ".join(entry.tags),
                figures_text(entry.record) if entry.record else "",
            )
        )
    has_records = any(entry.record for entry in entries)
    return table(rows if has_records else [row[:-1] for row in rows])


def figures_text(record: "Mapping[str, Any]") -> str:
    """Return what a benchmark comes to in a line."""
    ttft = record["ttft_p50_ms"]
    parts = [
        f"{record['output_tok_s']:,.0f} tokens/s at {record['load']}",
        "" if ttft is None else f"TTFT {ttft:,.0f} ms",
        record["engine"] or "",
        record["gpu"] or "no GPU",
    ]
    return ", ".join(filter(None, parts))
