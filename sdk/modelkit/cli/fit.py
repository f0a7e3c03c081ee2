"""`modelkit fit`: whether a model fits on a GPU, what takes the room, and what to change where it does not."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Overrides
from modelkit.errors import UsageError

if TYPE_CHECKING:
    from modelkit.config import Config
    from modelkit.fit import Device, Estimate, Measured, Model, Settings, Suggestion

__all__ = ["command"]

EXIT_DOES_NOT_FIT = 1
_MOST_SUGGESTIONS = 5
_LEAST_MEMORY_BYTES = 2**20  # less is a unit that was forgotten
_LEAST_SIZE_CELLS = 12


class _Asked(NamedTuple):
    """What is to fit, and on what."""

    model: "Model"
    settings: "Settings"
    device: "Device"
    max_model_len: int | None
    concurrency: int


def command(
    path: Annotated[
        Path, typer.Argument(help="The model folder, its config.yaml, or a checkpoint's folder.")
    ] = Path(),
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The card, such as H200, or a machine type. Default: config.yaml's, or this machine's.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Instead of a card, its memory: 24GiB.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences of full length at the same time.")
    ] = 1,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tokens of a sequence. Default: config.yaml's or the checkpoint's."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another engine than config.yaml names; lmdeploy:pytorch."),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tp", min=1, metavar="N", help="GPUs that share each layer.")
    ] = None,
    environment: Environment = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Tell whether a model fits on a GPU.

    Counts weights, KV cache and what the engine takes besides, as that engine divides memory, and says what to change
    where it does not fit; the exit code is then 1.
    """
    from dataclasses import asdict, replace

    from modelkit.fit import (
        estimate,
        largest_concurrency,
        largest_max_model_len,
        read_measured,
        suggestions,
        taught,
    )

    config, model_dir = _config(path, environment, overrides or [], engine)
    bare = _model(config, model_dir)
    measured = read_measured(bare, model_dir)
    model = taught(bare, measured)
    settings = _settings(config, engine)
    device = _device(config, settings.engine, gpu, memory)
    num = _num_there(gpu, memory, config, device)
    size = tensor_parallel_size or (device.count if gpu is not None and _spreads(settings) else 1)
    if size > 1:
        settings = replace(settings, tensor_parallel_size=size)
    if settings.tensor_parallel_size > 1:
        _check_size(settings.tensor_parallel_size, settings, model, device, num)
    asked = _Asked(model, settings, device, max_model_len, concurrency)
    found = estimate(model, settings, asked.device, max_model_len=max_model_len, concurrency=concurrency)
    longest = largest_max_model_len(model, settings, asked.device, concurrency)
    most = largest_concurrency(model, settings, asked.device, max_model_len)
    changes = suggestions(
        model, settings, asked.device, max_model_len=max_model_len, concurrency=concurrency
    )[:_MOST_SUGGESTIONS]
    seen = next((each for each in measured if each.kind == found.settings.engine), None)
    if as_json:
        told = {"measured": asdict(seen) if seen else None}
        console.json(_as_json(found, asked, longest, most, changes) | told)
    else:
        console.result(_as_text(found, asked, longest, most, changes))
        if seen:
            console.result(_as_seen(seen))
    return 0 if found.fits else EXIT_DOES_NOT_FIT


def _config(
    path: Path, environment: str | None, overrides: list[str], engine: str | None
) -> tuple["Config | None", Path]:
    """Return the config of a model folder, or None for a folder that is a checkpoint; and the folder."""
    from modelkit.config import find_config, load_config

    if not find_config(path).is_file() and (path / "config.json").is_file():
        if overrides or environment:
            raise UsageError(
                f"{path} is a checkpoint, not a model folder, so there are no keys to set",
                cure="give a model folder, or leave --set and --env out",
            )
        return None, path
    config = load_config(path, environment=environment, overrides=overrides)
    if engine is not None and config.engine is not None:
        from modelkit.engines.switching import switch_engine

        config, _ = switch_engine(config, engine)
    return config, find_config(path).parent


def _model(config: "Config | None", model_dir: Path) -> "Model":
    """Return what is to fit. Raises UsageError where the folder has no weights to count, LoadError without them."""
    from modelkit.fit import LocalReader, open_checkpoint, read_model

    if config is None:
        return read_model(LocalReader(model_dir))
    if config.engine is None or config.checkpoints is None:
        raise UsageError(
            f"{config.model.id} has no checkpoint that an engine loads, so there is nothing to count",
            cure="add 'engine' and 'checkpoints' to config.yaml, or give a checkpoint's folder",
        )
    from modelkit.checkpoints.resolve import is_offline

    with (
        console.status("reading the headers of the weights"),
        open_checkpoint(config, model_dir, offline=is_offline()) as reader,
    ):
        return read_model(reader)


def _settings(config: "Config | None", engine: str | None) -> "Settings":
    from modelkit.fit import Settings, kind_of, settings_of

    if config is None or config.engine is None:
        return Settings(engine=kind_of(engine or "vllm"))
    settings = settings_of(config.engine, config.compute.num_accelerators)
    if settings is None:
        raise UsageError(
            f"the engine '{config.engine.name}' loads no weights here, so there is nothing to count",
            cure="name another with --engine",
        )
    return settings


def _device(config: "Config | None", engine: str, gpu: str | None, memory: str | None) -> "Device":
    """Return what it is to fit on: what the options say, else config.yaml, else this machine."""
    from modelkit.config.quantities import parse_memory
    from modelkit.fit import device_by_name, device_of_compute, device_of_size, this_machine

    if gpu is not None and memory is not None:
        raise UsageError("--gpu and --memory both say what it is to fit on", cure="give one of them")
    if gpu is not None:
        return device_by_name(gpu)
    if memory is not None:
        size_bytes = parse_memory(memory)
        if not size_bytes or size_bytes < _LEAST_MEMORY_BYTES:
            raise UsageError(
                f"'{memory}' is no memory of a GPU", cure="write it with its unit, like 24GiB or 80G"
            )
        return device_of_size(size_bytes)
    device = (device_of_compute(config.compute) if config is not None else None) or this_machine()
    if device.is_cpu and engine not in {"vllm", "transformers"}:
        raise UsageError(
            f"this machine has no GPU, and {engine} runs on nothing else",
            cure="name the card that it is for: --gpu H200, or --memory 24GiB",
        )
    return device


def _num_there(gpu: str | None, memory: str | None, config: "Config | None", device: "Device") -> int | None:
    """Return how many of the device there are: in a machine type, or in this machine; None where nobody has said."""
    from modelkit.config.accelerators import table

    if gpu is not None:
        return device.count if gpu in table()["instances"] else None
    is_asked_for = memory is not None or (config is not None and config.compute.num_accelerators > 0)
    return None if is_asked_for else device.count


def _spreads(settings: "Settings") -> bool:
    return settings.engine != "transformers"


def _check_size(size: int, settings: "Settings", model: "Model", device: "Device", num: int | None) -> None:
    """Refuse to count what no engine would start: layers are shared by whole heads, on GPUs that are there (`num`)."""
    if not _spreads(settings):
        raise UsageError(
            f"transformers runs on one GPU, and {size} are to share the model",
            cure="leave --tp out, or name another --engine",
        )
    if device.is_cpu or (num is not None and size > num):
        there = "no GPU" if device.is_cpu else f"{num} of {device.name}"
        raise UsageError(
            f"{size} GPUs are to share the model, and there is {there}",
            cure="give a smaller --tp, or name what it is for: --gpu H200",
        )
    architecture = model.architecture
    if not architecture.spreads_over(size):
        sizes = ", ".join(str(each) for each in range(1, size) if architecture.spreads_over(each))
        heads = f"{architecture.num_attention_heads} attention heads and {architecture.num_kv_heads} of keys and values"
        raise UsageError(
            f"{size} GPUs cannot share the {heads} of {architecture.name}",
            cure=f"give --tp with one of: {sizes}",
        )


def _as_json(
    found: "Estimate", asked: _Asked, longest: int, most: int, changes: "list[Suggestion]"
) -> dict[str, Any]:
    from modelkit.fit import as_json

    architecture = asked.model.architecture
    return {
        **as_json(found),
        "architecture": architecture.name,
        "is_known": architecture.is_known,
        "notes": list(architecture.notes),
        "largest_max_model_len": longest,
        "largest_concurrency": most,
        "suggestions": [{"text": change.text, "options": list(change.options)} for change in changes],
    }


def _as_text(found: "Estimate", asked: _Asked, longest: int, most: int, changes: "list[Suggestion]") -> str:
    from modelkit.fit import engine_title, gib, max_sequences, rows, spelled

    device, settings, architecture = found.device, found.settings, asked.model.architecture
    size = settings.tensor_parallel_size
    each = f"each of {size} x " if size > 1 else ""
    lines = [
        f"{architecture.name} with {engine_title(found)} on {each}{device.name}, {gib(device.usable_bytes)} usable",
        "",
    ]
    table = rows(found)
    width = max(len(text) for text, _ in table) + 2
    sizes = max([_LEAST_SIZE_CELLS, *(len(gib(num_bytes)) for _, num_bytes in table)])
    lines += [f"  {text:<{width}}{gib(num_bytes):>{sizes}}" for text, num_bytes in table]
    lines.append("")
    if found.fits:
        verdict = console.paint("it fits", "green", sys.stdout)
        lines.append(
            f"{verdict}: {found.kv_capacity_tokens:,} tokens of KV cache; {_limits(found, longest, most)}"
        )
    else:
        verdict = console.paint("it does not fit", "red", sys.stdout)
        lines.append(
            f"{verdict}: {gib(found.missing_bytes)} are missing on each device; {_limits(found, longest, most)}"
        )
        lines.append("what would make it fit, each alone:" if changes else "no single change makes it fit")
        lines += [f"  {spelled(change)}" for change in changes]
    limit = max_sequences(settings, device)
    if found.concurrency > limit:
        lines.append(f"note: {engine_title(found)} answers {limit:,} at the same time; the others wait")
    if found.left_alone_bytes < 0 and found.fits:
        lines.append(
            f"note: CUDA context and graphs may take {gib(-found.left_alone_bytes)} more than {engine_title(found)} leaves for "
            "them; where its start runs out of memory, lower engine.gpu_memory_utilization"
        )
    lines += [f"note: {text}" for text in architecture.notes]
    if found.weights.is_estimate:
        why = "" if architecture.notes else ", for their files are not all here"
        lines.append(f"note: the weights are told from config.json{why}")
    return "\n".join(lines)


def _as_seen(seen: "Measured") -> str:
    from modelkit.fit import gib

    more = f"{gib(seen.beyond_bytes)} more than its sum" if seen.beyond_bytes else "no more than its sum"
    return (
        f"note: bench saw {gib(seen.peak_bytes)} in use at {seen.load} by {seen.engine} on {seen.device}, {more} "
        f"(run {seen.run_id})"
    )


def _limits(found: "Estimate", longest: int, most: int) -> str:
    if not longest:
        fewer = f"there is room for {most:,} of {found.max_model_len:,} tokens"
        return fewer if most else "there is no room for any KV cache"
    at_once = "one sequence" if found.concurrency == 1 else f"{found.concurrency:,} sequences"
    others = f", or for {most:,} of {found.max_model_len:,}" if most else ""
    return f"there is room for {at_once} of up to {longest:,} tokens{others}"
