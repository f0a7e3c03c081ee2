"""`modelkit cache`: which checkpoints this machine keeps, how much they take, and what can go."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.errors import UsageError
from modelkit.progress import size_text

if TYPE_CHECKING:
    from modelkit.checkpoints.cache import Cache, KeptCheckpoint, PulledVersion

__all__ = ["SUBCOMMANDS", "command", "folder", "list_all", "prune"]

_DAY_S = 86_400
_AGE = re.compile(r"(?P<number>\d+)(?P<unit>[hdw])")
_UNITS_S = {"h": 3600, "d": _DAY_S, "w": 7 * _DAY_S}

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command(context: typer.Context) -> None:
    """Show the checkpoints kept on this machine; prune them."""
    if context.invoked_subcommand is None:
        list_all()


def list_all(json: _Json = False) -> None:
    """List the checkpoints, with size and last use."""
    from modelkit.checkpoints.cache import Cache

    cache = Cache()
    cache.check()
    kept = cache.list_checkpoints()
    described = _describe(kept)
    total_bytes = sum(size for size in _contents(kept).values())
    unused_bytes = sum(cache.unused().values())
    pulled = cache.list_pulled()
    if json:
        console.json(
            {
                "dir": str(cache.root),
                "checkpoints": described,
                "versions": [
                    {
                        "folder": str(each.folder),
                        "size_bytes": each.size_bytes,
                        "last_used": each.last_used,
                    }
                    for each in pulled
                ],
                "total_bytes": total_bytes,
                "unused_bytes": unused_bytes,
            }
        )
        return
    for each in described:
        shared = f", {size_text(each['shared_bytes'])} of it shared" if each["shared_bytes"] else ""
        commit = f" at {each['commit'][:12]}" if each["commit"] else ""
        console.result(
            f"{each['type']}: {each['where']}{commit}\n"
            f"  {each['num_files']} files, {size_text(each['size_bytes'])}{shared}; "
            f"last used {_ago(each['last_used'])}\n  {each['folder']}"
        )
    for version in pulled:
        console.result(
            f"version {version.folder.name[:12]}, served by its name\n"
            f"  {size_text(version.size_bytes)}; last used {_ago(version.last_used)}\n  {version.folder}"
        )
    unused = (
        f"; {size_text(unused_bytes)} more is used by none (`modelkit cache prune`)" if unused_bytes else ""
    )
    noun = "checkpoint" if len(kept) == 1 else "checkpoints"
    console.result(f"{len(kept)} {noun}, {size_text(total_bytes)} in {cache.root}{unused}")


def folder() -> None:
    """Print the cache's folder; MODELKIT_CACHE_DIR names another one."""
    from modelkit.checkpoints.cache import cache_dir

    console.result(str(cache_dir()))


def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Delete checkpoints and versions too that were not used for this long: 30d, 12h, 2w.",
        ),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Delete all checkpoints and versions.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: _Json = False,
) -> None:
    """Delete what no checkpoint uses: old contents, and transfers that were cut off."""
    from modelkit.checkpoints.cache import Cache

    if everything and older_than:
        raise UsageError("--all takes every checkpoint, --older-than some", cure="give one of the two")
    before = float("inf") if everything else time.time() - _age_s(older_than) if older_than else 0.0
    cache = Cache()
    cache.check()
    leaving = [each for each in cache.list_checkpoints() if each.last_used < before]
    versions = [each for each in cache.list_pulled() if each.last_used < before]
    with _pruning(cache):
        files = cache.unused(each.folder for each in leaving)
    freed_bytes = sum(files.values()) + sum(each.size_bytes for each in versions)
    for each in leaving:
        console.info(f"  {each.checkpoint.where}, last used {_ago(each.last_used)}")
    for version in versions:
        console.info(f"  version {version.folder.name[:12]}, last used {_ago(version.last_used)}")
    if files or leaving or versions:
        counted = ((leaving, "checkpoint"), (versions, "version"), (files, "unused file"))
        what = ", ".join(_counted(len(some), noun) for some, noun in counted if some)
        console.info(f"{what}: {size_text(freed_bytes)}")
    else:
        console.info("there is nothing to delete")
    if (files or leaving or versions) and not dry_run:
        _confirm(yes=yes)  # with nothing held: a fetch need not wait for the answer
        with _pruning(cache):
            freed_bytes = _delete(cache, leaving, versions)
        console.success(f"freed {size_text(freed_bytes)}")
    if json:
        console.json(
            {
                "checkpoints": [str(each.folder) for each in leaving],
                "versions": [str(each.folder) for each in versions],
                "freed_bytes": freed_bytes,
            }
        )


def _pruning(cache: "Cache") -> AbstractContextManager[None]:
    return cache.pruning(lambda: console.info("waiting for a fetch to end"))


SUBCOMMANDS = {"ls": list_all, "prune": prune, "dir": folder}


def _delete(cache: "Cache", leaving: "Sequence[KeptCheckpoint]", versions: "Sequence[PulledVersion]") -> int:
    """Delete checkpoints and versions, and then what no other uses. Returns the bytes that this freed."""
    for each in leaving:
        if not cache.remove_checkpoint(each):
            console.warning(
                f"{each.checkpoint.where} stays: a process serves from it", cure="stop that one first"
            )
    freed_bytes = 0
    for version in versions:
        if cache.remove_pulled(version):
            freed_bytes += version.size_bytes
        else:
            console.warning(f"{version.folder} stays: a process serves from it", cure="stop that one first")
    for path, size_bytes in cache.unused().items():
        path.unlink(missing_ok=True)
        freed_bytes += size_bytes
    cache.sweep()
    return freed_bytes


def _confirm(*, yes: bool) -> None:
    if yes:
        return
    if not console.is_interactive():
        raise UsageError(
            "nobody is there to be asked", cure="give --yes, or --dry-run to see what it would be"
        )
    typer.confirm("delete them?", abort=True, err=True)


def _describe(kept: "Sequence[KeptCheckpoint]") -> list[dict[str, Any]]:
    users = Counter(sha256 for each in kept for sha256 in {file.sha256 for file in each.checkpoint.files})
    return [
        {
            "folder": str(each.folder),
            "type": each.checkpoint.type,
            "where": each.checkpoint.where,
            "commit": each.checkpoint.commit,
            "num_files": len(each.checkpoint.files),
            "size_bytes": each.checkpoint.size_bytes,
            "shared_bytes": sum(file.size_bytes for file in each.checkpoint.files if users[file.sha256] > 1),
            "last_used": each.last_used,
        }
        for each in kept
    ]


def _contents(kept: "Sequence[KeptCheckpoint]") -> dict[str, int]:
    return {file.sha256: file.size_bytes for each in kept for file in each.checkpoint.files}


def _age_s(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is no age", cure="write 30d, 12h or 2w")
    return int(match["number"]) * _UNITS_S[match["unit"]]


def _ago(moment: float) -> str:
    days = (time.time() - moment) / _DAY_S
    if days < 1:
        return "today" if days * 24 >= 1 else "within the hour"
    return f"{days:.0f} day{'' if round(days) == 1 else 's'} ago"


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
