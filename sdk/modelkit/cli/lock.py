"""`modelkit lock`: pin what config.yaml's checkpoints, engine and image come to, or see whether the pins still hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Offline, Overrides
from modelkit.errors import UsageError
from modelkit.progress import size_text

if TYPE_CHECKING:
    from modelkit.checkpoints.lock import Lock
    from modelkit.checkpoints.resolve import Drift

__all__ = ["command"]

EXIT_DRIFT = 1


def command(
    path: Annotated[Path, typer.Argument(help="The model folder, or its config.yaml.")] = Path(),
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where the lock is not what it would be.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Pin anew what is pinned already: branches where they are now.")
    ] = False,
    environment: Environment = None,
    overrides: Overrides = None,
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Pin a model's checkpoints, file by file, in modelkit.lock."""
    from modelkit.checkpoints.resolve import check_lock, make_lock
    from modelkit.cli.checkpoints import load_folder, terms_in_view
    from modelkit.config import find_config

    if check and update:
        raise UsageError("--check writes nothing, and --update does", cure="give one of the two")
    config = load_folder(path, environment, overrides or ())
    model_dir = find_config(path).parent
    if check:
        with terms_in_view("reading", offline=offline) as terms:
            drift = check_lock(config, model_dir, terms)
        return _report(drift, as_json=json)
    with terms_in_view("pinning", offline=offline) as terms:
        lock = make_lock(config, model_dir, terms, update=update)
    has_changed = lock.write(model_dir)
    if json:
        console.result(lock.to_text(), end="")
    for line in _lines(lock):
        console.info(f"  {line}")
    console.success("modelkit.lock is written" if has_changed else "modelkit.lock is up to date")
    return 0


def _report(drift: "Drift", *, as_json: bool) -> int:
    if as_json:
        console.json({"differences": drift.differences, "moved": drift.moved})
    for moved in drift.moved:
        console.warning(moved, cure="`modelkit lock --update` follows it")
    if not as_json:
        for difference in drift.differences:
            console.result(difference)
    if drift.differences:
        console.info("`modelkit lock` pins what is there now")
        return EXIT_DRIFT
    console.success("modelkit.lock is what config.yaml says")
    return 0


def _lines(lock: "Lock") -> list[str]:
    lines = []
    for name, checkpoint in lock.checkpoints.items():
        commit = f" at {checkpoint.commit[:12]}" if checkpoint.commit else ""
        num = len(checkpoint.files)
        files = f"{num} file{'' if num == 1 else 's'}, {size_text(checkpoint.size_bytes)}"
        lines.append(f"{name}: {checkpoint.where}{commit}, {files}")
    if lock.engine is not None:
        lines.append(f"engine: {' '.join(filter(None, (lock.engine.name, lock.engine.version)))}")
    lines.append(f"image: {lock.image}")
    return lines
