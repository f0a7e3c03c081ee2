"""`modelkit version`: what is installed, for bug reports and scripts."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated

import typer

from modelkit import __version__
from modelkit.cli import console

__all__ = ["command"]

# Distribution, then the module that tells whether it is there: looked for, never imported.
ENGINES = {"transformers": "transformers", "vllm": "vllm", "sglang": "sglang", "lmdeploy": "lmdeploy"}
LIBRARIES = ("grpcio", "protobuf", "torch")


def command(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the versions of modelkit and what it runs on."""
    engines = {name: _version(name) for name, module in ENGINES.items() if find_spec(module) is not None}
    found = {
        "modelkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "engines": engines,
    }
    if json:
        console.json(found)
        return
    rows = {key: found[key] for key in ("modelkit", "python", "platform")} | found["libraries"]  # type: ignore[operator]
    rows["engines"] = ", ".join(f"{name} {number}" for name, number in engines.items()) or "none"
    width = max(map(len, rows))
    console.result("\n".join(f"{name:<{width}}  {value or 'not installed'}" for name, value in rows.items()))


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
