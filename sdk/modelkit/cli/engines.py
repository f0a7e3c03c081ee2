"""`modelkit engines`: which engines there are, what is installed, and the environments that modelkit keeps for them."""

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.errors import UsageError
from modelkit.progress import size_text as _size

if TYPE_CHECKING:
    from modelkit.engines import EngineInfo
    from modelkit.engines.environments import Environment
    from modelkit.engines.machine import Gpu

__all__ = ["SUBCOMMANDS", "command", "install", "remove"]

# What a line of an installer may take beside the stage, so that the spinner stays on one line.
_DETAIL_CELLS = 50


def command(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the engines, and what each has installed on this machine."""
    if context.invoked_subcommand is not None:
        if json:
            raise UsageError("--json belongs to the list", cure="modelkit engines --json")
        return
    from modelkit.engines import ENGINES
    from modelkit.engines.environments import engines_dir, list_environments
    from modelkit.engines.machine import has_nvidia_gpu, nvidia_gpus

    gpus, kept, has_gpu = nvidia_gpus(), list_environments(), has_nvidia_gpu()
    engines = [_describe(name, info, kept, has_gpu=has_gpu) for name, info in ENGINES.items()]
    if json:
        machine = [{"name": g.name, "memory_bytes": g.memory_bytes, "driver": g.driver} for g in gpus]
        console.json({"gpus": machine, "engines_dir": engines_dir(), "engines": engines})
        return
    console.result("\n".join([f"this machine: {_machine(gpus)}", *map(_paragraph, engines)]))


def install(
    requirement: Annotated[
        str, typer.Argument(metavar="ENGINE[==VERSION]", help="Such as vllm, or vllm==0.26.0.")
    ],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Make it anew; the old one stays where that fails.")
    ] = False,
) -> None:
    """Install an engine into an environment of its own, which models that name it then use."""
    from modelkit.engines.environments import install as install_engine
    from modelkit.engines.environments import parse_requirement
    from modelkit.engines.installers import Progress

    parse_requirement(requirement)
    with console.status(f"installing {requirement}") as show:
        stages = _Stages(show)
        made = install_engine(requirement, Progress(stages.next, stages.detail), force=force)
    console.success(f"{made.requirement} is in {_short(made.folder)} ({_size(made.size_bytes)})")
    if not stages.seen:
        console.info("  it was there already; --force makes it anew")


def remove(
    requirement: Annotated[
        str, typer.Argument(metavar="ENGINE[==VERSION]", help="As `modelkit engines` lists it.")
    ],
) -> None:
    """Delete an environment that modelkit keeps."""
    from modelkit.engines.environments import remove as remove_engine

    removed = remove_engine(requirement)
    for gone in removed:
        console.success(f"removed {gone.requirement}, which took {_size(gone.size_bytes)}")


SUBCOMMANDS = {"install": install, "remove": remove}


class _Stages:
    """Shows the stage of an installation and, on a terminal, the last line of the installer beside it."""

    def __init__(self, show: Any) -> None:
        self._show = show
        self.seen: list[str] = []

    def next(self, stage: str) -> None:
        """Go on to a stage."""
        self.seen.append(stage)
        self._show(stage)

    def detail(self, line: str) -> None:
        """Show a line of the installer's; where lines are kept, with -v only: there are hundreds."""
        if console.is_verbose():
            console.info(f"  {line}")
        elif console.is_interactive() and line:
            self._show(f"{self.seen[-1]}: {line[:_DETAIL_CELLS]}")


def _describe(name: str, info: "EngineInfo", kept: "list[Environment]", *, has_gpu: bool) -> dict[str, Any]:
    """Return what is to be said of an engine."""
    here = info.version_here()
    installed = [{"version": here, "python": sys.executable, "kept": False}] if here else []
    installed += [
        {
            "version": environment.version,
            "python": str(environment.python),
            "kept": True,
            "hardware": environment.hardware,
            "size_bytes": environment.size_bytes,
        }
        for environment in kept
        if environment.engine == name
    ]
    build = info.builds.get("gpu" if has_gpu else "cpu")
    return {
        "name": name,
        "summary": info.summary,
        "installed": installed,
        "default_version": build.version if build else None,
        "runs_here": has_gpu or not info.needs_gpu,
        "image": info.image,
    }


def _paragraph(engine: dict[str, Any]) -> str:
    rows = [("image", engine["image"])]
    if engine["installed"] or engine["default_version"] or not engine["runs_here"]:
        rows.insert(0, ("installed", "; ".join(map(_installation, engine["installed"])) or _absence(engine)))
    lines = [f"{label + ':':<10} {text}" for label, text in rows]
    name = console.paint(f"{engine['name']:<13}", "bold", sys.stdout)
    return "\n".join([f"\n{name} {engine['summary']}", *(f"{'':<13} {line}" for line in lines)])


def _installation(installed: dict[str, Any]) -> str:
    if not installed["kept"]:
        return f"{installed['version']} (beside modelkit)"
    hardware = ", for CPUs" if installed["hardware"] == "cpu" else ""
    folder = _short(Path(installed["python"]).parents[1])
    return f"{installed['version']} in {folder} ({_size(installed['size_bytes'])}{hardware})"


def _absence(engine: dict[str, Any]) -> str:
    if not engine["runs_here"]:
        return "no: it needs an NVIDIA GPU"
    name, version = engine["name"], engine["default_version"]
    return f"no; `modelkit engines install {name}` gets {version}, as the first `modelkit serve` would"


def _machine(gpus: "tuple[Gpu, ...]") -> str:
    if not gpus:
        return f"no NVIDIA GPU ({platform.machine()})"
    names = list(dict.fromkeys((gpu.name, gpu.memory_bytes) for gpu in gpus))
    counted = [
        f"{sum((gpu.name, gpu.memory_bytes) == kind for gpu in gpus)} x {kind[0]}, {_size(kind[1])} each"
        for kind in names
    ]
    return f"{'; '.join(counted)}; driver {gpus[0].driver}"


def _short(path: Path) -> str:
    """Write a path as a person would, from the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
