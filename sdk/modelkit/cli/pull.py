"""`modelkit pull`: a version becomes a model folder again, weights and all."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from modelkit.cli import console
from modelkit.errors import UsageError

__all__ = ["command"]

# As config.yaml has it; the id in a version is somebody else's word.
_MODEL_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="The version: chat:v3, or registry.example.com/chat:v3.")
    ],
    *,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to make. Default: the model's id, here.")
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Speak HTTP, unencrypted, to a registry that has no TLS.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was pulled as JSON.")] = False,
) -> None:
    """Make a model folder of a version, each file verified."""
    from modelkit.versions.names import open_version, version_reference
    from modelkit.versions.pull import pull

    found = version_reference(reference)
    with open_version(found, plain_http=plain_http, on_note=console.info) as version:
        folder = to or _folder_of(version.model_id)
        with console.transfer("pulling") as progress:
            pulled = pull(version, folder, progress=progress)
        digest = version.index.digest
    for note in pulled.notes:
        console.warning(note)
    if as_json:
        checkpoints = {name: str(path) for name, path in pulled.checkpoints.items()}
        console.json(
            {
                "folder": str(folder),
                "digest": digest,
                "checkpoints": checkpoints,
                "env": pulled.environment,
                "set": pulled.overrides,
            }
        )
        return
    console.success(f"{found} is in {folder}")
    options = ["--env", pulled.environment] if pulled.environment else []
    options += [part for each in pulled.overrides for part in ("--set", each)]
    console.info(f"  serve it with: {shlex.join(['modelkit', 'serve', str(folder), '--local', *options])}")
    console.result(str(folder))


def _folder_of(model_id: str) -> Path:
    """Return the folder that is named after a model, here. Raises UsageError where the name leads elsewhere."""
    if not _MODEL_ID.fullmatch(model_id):
        raise UsageError(
            f"the version calls its model {model_id!r}, which is no name for a folder",
            cure="name the folder to make with --to DIR",
        )
    return Path(model_id)
