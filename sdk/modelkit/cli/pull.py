"""`modelkit pull`: a version becomes a model folder again, weights and all."""

from pathlib import Path
from typing import Annotated

import typer

from modelkit.cli import console

__all__ = ["command"]


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
    with open_version(found, plain_http=plain_http) as version:
        folder = to or Path(version.model_id or "model")
        with console.transfer("pulling") as progress:
            pulled = pull(version, folder, progress=progress)
        digest = version.index.digest
    if as_json:
        checkpoints = {name: str(path) for name, path in pulled.checkpoints.items()}
        console.json(
            {"folder": str(folder), "digest": digest, "checkpoints": checkpoints, "set": pulled.overrides}
        )
        return
    console.success(f"{found} is in {folder}")
    settings = "".join(f" --set {each}" for each in pulled.overrides)
    console.info(f"  serve it with: modelkit serve {folder} --local{settings}")
    console.result(str(folder))
