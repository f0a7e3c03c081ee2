"""`modelkit schema`: the JSON Schema of config.yaml, for editors and other tools."""

from pathlib import Path
from typing import Annotated

import typer

from modelkit.cli import console
from modelkit.errors import UsageError

__all__ = ["command"]


def command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a file instead of printing.")
    ] = None,
) -> None:
    """Print the JSON Schema of config.yaml."""
    import json

    from modelkit.config import json_schema

    if output is None:
        console.json(json_schema())
        return
    try:
        output.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    console.success(f"wrote {output}")
