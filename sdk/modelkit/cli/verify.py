"""`modelkit verify`: whether a version is whole, undamaged, what its lock pinned, and signed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console

if TYPE_CHECKING:
    from modelkit.versions.verify import Check

__all__ = ["command"]

EXIT_FAILED = 1


def command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="The version: chat:v3, or registry.example.com/chat:v3.")
    ],
    *,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask for a signature of this public key (PEM).")
    ] = None,
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Look that everything is there, without reading it.")
    ] = False,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Speak HTTP, unencrypted, to a registry that has no TLS.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Verify a version: digests, pins, signature."""
    from modelkit.versions.names import open_version, version_reference
    from modelkit.versions.verify import verify

    found = version_reference(reference)
    with open_version(found, plain_http=plain_http, on_note=console.info) as version:
        with console.status(f"verifying {found}"), console.transfer("reading") as progress:
            checks = verify(version, key=key, shallow=shallow, progress=progress)
        digest = version.index.digest
    is_fine = all(check.is_fine is not False for check in checks)
    if as_json:
        listed = [{"name": each.name, "ok": each.is_fine, "detail": each.detail} for each in checks]
        console.json({"reference": str(found), "digest": digest, "ok": is_fine, "checks": listed})
    else:
        console.result("\n".join(_line(check) for check in checks))
        if is_fine:
            console.success(f"{found} is {digest}")
    return 0 if is_fine else EXIT_FAILED


def _line(check: "Check") -> str:
    mark = {True: "ok", False: "FAILED", None: "-"}[check.is_fine]
    return f"{check.name.ljust(10)}  {mark.ljust(6)}  {check.detail}"
