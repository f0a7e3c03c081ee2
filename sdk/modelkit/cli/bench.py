"""`modelkit bench`: how fast is it, which engine is faster, and where does it saturate?"""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Overrides
from modelkit.errors import ModelkitError, UsageError

if TYPE_CHECKING:
    from modelkit.benchmark.results import Store
    from modelkit.benchmark.runner import Settings
    from modelkit.benchmark.subjects import Source
    from modelkit.benchmark.targets import TargetSpec

__all__ = ["SUBCOMMANDS", "command", "compare", "report"]

_DEFAULTS = {"concurrency": "1,100", "input_tokens": "2048", "output_tokens": "2048"}
_SWEEP_FROM, _SWEEP_TO = (1,), 256
_DOTS = "..."
_MAX_DOUBTS = 6
_HEADROOM_TOKENS = 64  # of a random checkpoint's max_model_len: special tokens, a chat template


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET ...]",
            help="A model folder, http://... (OpenAI's API), host:port or modelkit://COMPUTE/NAME (modelkit's gRPC). Default: the folder here.",
        ),
    ] = None,
    *,
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Serve each folder with each of these engines: vllm,sglang,lmdeploy."
        ),
    ] = None,
    protocol: Annotated[
        Literal["grpc", "http", "both"], typer.Option(help="How a folder's server is called.")
    ] = "grpc",
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Settings of a published comparison: blog-c1, blog-c100."),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Callers at the same time, each a level; 1,2,4,... doubles to saturation. Default: 1,100.",
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Double the callers from 1 to saturation, then Poisson load around the peak."
        ),
    ] = False,
    request_rate: Annotated[
        str | None,
        typer.Option(metavar="R,...", help="Requests a second, at random times, in place of callers."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Requests at the times and lengths of a trace (JSON lines).")
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="Let all callers begin at once.")] = False,
    num_requests: Annotated[
        str | None,
        typer.Option(
            metavar="N,...", help="Requests of all levels, or of each. Default: 3 a caller, 10 or more."
        ),
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Length of each level in place of a number: 60s, 5m.")
    ] = None,
    input_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Prompt tokens: 2048, 100-200, normal:M,D or lognormal:M,S. Default: 2048."
        ),
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Answer tokens, spelled the same. Default: 2048.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts of a file: lines, JSON lines, or ShareGPT's JSON.")
    ] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Turns of each conversation.")] = None,
    shared_prefix: Annotated[int, typer.Option(min=0, help="Tokens that all prompts of a group share.")] = 0,
    num_prefixes: Annotated[int, typer.Option(min=1, help="Groups that share a prefix.")] = 1,
    images: Annotated[int, typer.Option(min=0, help="Random images in each prompt.")] = 0,
    image_size: Annotated[str, typer.Option(metavar="WxH", help="Their size in pixels.")] = "512x512",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A running server's tokenizer.json, for prompts of an exact length.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="The model's name in requests. Default: the server's first.")
    ] = "",
    endpoint: Annotated[
        Literal["completions", "chat"], typer.Option(help="The endpoint to call.")
    ] = "completions",
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that has the API key.")
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH,...",
            help="Architectures with random weights in place of a folder: qwen2-7b, a config.json.",
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC_STATISTIC=TIME", help="Exit with 1 where missed: ttft_p95=500ms, itl_p99=50ms."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each level; `compare` needs them.")] = 1,
    seed: Annotated[int, typer.Option(help="Of prompts and schedules.")] = 0,
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="The longest that a request may take.")
    ] = "10m",
    warm_up: Annotated[
        int, typer.Option(min=0, help="Most rounds of warm-up before each level; 0 is none.")
    ] = 5,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of the client. Default: 1, more where it is the bottleneck."),
    ] = None,
    environment: Environment = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the run is kept; one that was cut off goes on. Default: .modelkit/bench/...",
        ),
    ] = None,
    export: Annotated[
        Literal["vllm"] | None, typer.Option(help="Write each level as `vllm bench serve` would, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
) -> int:
    """Measure served models: TTFT, ITL and tokens/s, engine by engine.

    `modelkit bench compare A B` tells better from noise; `modelkit bench report DIR...` draws one page of several runs.
    """
    from modelkit.benchmark.lengths import parse_lengths
    from modelkit.benchmark.objectives import parse_objective
    from modelkit.benchmark.runner import Settings
    from modelkit.benchmark.workload import Workload, read_trace

    chosen = _with_preset(preset, concurrency, input_tokens, output_tokens, num_requests)
    workload = Workload(
        input_tokens=parse_lengths(chosen["input_tokens"], "--input-tokens"),
        output_tokens=parse_lengths(chosen["output_tokens"], "--output-tokens"),
        seed=seed,
        shared_prefix_tokens=shared_prefix,
        num_prefixes=num_prefixes,
        num_turns=turns or (10**6 if prompts else 1),
        num_images=images,
        image_size=_size(image_size),
        prompts_path=prompts,
    )
    callers, sweep_to = _callers(chosen["concurrency"], sweep=sweep)
    settings = Settings(
        workload=workload,
        concurrency=callers,
        sweep_to=sweep_to,
        rates=_rates(request_rate),
        trace=read_trace(trace) if trace else None,
        burst=burst,
        num_requests=_numbers(chosen["num_requests"]),
        duration_s=_seconds(duration, "--duration") if duration else None,
        repeats=repeats,
        objectives=tuple(parse_objective(text) for text in slo or ()),
        warm_up_rounds=warm_up,
        processes=processes,
    )
    base = _base_spec(model, endpoint, api_key_env, timeout, chat=workload.needs_chat)
    max_model_len = round(workload.input_tokens.mean + workload.output_tokens.mean) + _HEADROOM_TOKENS
    sources = _sources(
        targets or [],
        engines=engines,
        protocol=protocol,
        base=base,
        tokenizer=tokenizer,
        random_weights=random_weights,
        max_model_len=max_model_len,
        environment=environment,
        overrides=tuple(overrides or ()),
    )
    asked = {
        "protocol": protocol,
        "endpoint": base.endpoint,
        "overrides": overrides or [],
        "environment": environment,
    }
    store = _open_store(settings, sources, output, asked)
    failed = _measure(sources, settings, store)
    return _finish(store, sources, export=export, as_json=as_json) or int(bool(failed))


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="The run to compare with: a folder or its run.json.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other run.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    fail_on_worse: Annotated[
        bool, typer.Option("--fail-on-worse", help="Exit with 1 where B is worse in anything.")
    ] = False,
) -> int:
    """Say of each level and metric whether B is better than A, worse, or within the noise."""
    from modelkit.benchmark.compare import compare_runs, comparison_lines
    from modelkit.benchmark.results import load_run

    rows = compare_runs(load_run(first), load_run(second))
    if as_json:
        console.json(rows)
    else:
        for line in comparison_lines(rows):
            console.result(line)
    return int(fail_on_worse and any(row["verdict"] == "worse" for row in rows))


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR ...", help="Runs to draw on one page.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
) -> None:
    """Draw one HTML page of one or several runs, and print their table."""
    from modelkit.benchmark.compare import winners
    from modelkit.benchmark.report import together, write_report
    from modelkit.cli.bench_view import table

    written = write_report(folders, output, title=title)
    run = together(folders)
    console.result("\n".join([table(run), *winners(run)]))
    console.success(f"{written.page} has {written.num_charts} charts")
    if written.pngs:
        console.info(f"  as pictures: {written.pngs[0].parent}")


SUBCOMMANDS = {"compare": compare, "report": report}


# -------------------------------------------------------------------------------------------------------------- options


def _with_preset(
    preset: str | None,
    concurrency: str | None,
    input_tokens: str | None,
    output_tokens: str | None,
    num_requests: str | None,
) -> dict[str, Any]:
    """Return what the options say, what the preset says where they do not, and the defaults where neither does."""
    from modelkit.benchmark.presets import PRESETS
    from modelkit.errors import closest

    given = {
        "concurrency": concurrency,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "num_requests": num_requests,
    }
    if preset is not None and preset not in PRESETS:
        guess = closest(preset, list(PRESETS))
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise UsageError(f"there is no preset '{preset}'{hint}", cure=f"use one of: {', '.join(PRESETS)}")
    known = {"num_requests": None, **_DEFAULTS, **(PRESETS[preset] if preset else {})}
    return {**known, **{name: value for name, value in given.items() if value is not None}}


def _callers(text: str, *, sweep: bool) -> tuple[tuple[int, ...], int | None]:
    """Read --concurrency; a list that ends with dots, and --sweep, go on doubling."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    goes_on = sweep or _DOTS in parts
    if sweep and text == _DEFAULTS["concurrency"]:
        return _SWEEP_FROM, _SWEEP_TO
    try:
        numbers = tuple(int(part) for part in parts if part != _DOTS)
        if not numbers or min(numbers) < 1:
            raise ValueError(text)
    except ValueError:
        raise UsageError(
            f"--concurrency {text}: give numbers of callers", cure="such as 1,100 or 1,2,4,..."
        ) from None
    return numbers, max(_SWEEP_TO, numbers[-1]) if goes_on else None


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in (text or "").split(",") if part.strip())
        if any(number < 1 for number in numbers):
            raise ValueError(text)
    except ValueError:
        raise UsageError(
            f"--num-requests {text}: give numbers of requests", cure="such as 100 or 10,300"
        ) from None
    return numbers


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in (text or "").split(",") if part.strip())
        if any(not 0 < rate < float("inf") for rate in rates):
            raise ValueError(text)
    except ValueError:
        raise UsageError(
            f"--request-rate {text}: give requests a second", cure="such as 2 or 0.5,1,2"
        ) from None
    return rates


def _seconds(text: str, option: str) -> float:
    from modelkit.config.quantities import parse_duration

    seconds = parse_duration(text)
    if not seconds:
        raise UsageError(f"{option} {text}: that is no time", cure="such as 60s or 5m")
    return seconds


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--image-size {text}: that is no size", cure="such as 512x512")
    return int(width), int(height)


def _base_spec(
    model: str, endpoint: Any, api_key_env: str | None, timeout: str, *, chat: bool
) -> "TargetSpec":
    import os

    from modelkit.benchmark.targets import TargetSpec

    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env, "").strip() or None
        if key is None:
            raise UsageError(
                f"the environment variable {api_key_env} is not set or empty",
                cure=f"export {api_key_env}=...",
            )
    return TargetSpec(
        protocol="grpc",
        address="",
        model=model,
        endpoint="chat" if chat else endpoint,
        api_key=key,
        timeout_s=_seconds(timeout, "--timeout"),
    )


def _sources(
    targets: Sequence[str],
    *,
    engines: str | None,
    protocol: str,
    base: "TargetSpec",
    tokenizer: Path | None,
    random_weights: str | None,
    max_model_len: int,
    environment: str | None,
    overrides: tuple[str, ...],
) -> "list[Source]":
    """Return what is measured."""
    from modelkit.benchmark.random_weights import read_config
    from modelkit.benchmark.subjects import (
        FolderSource,
        RandomSource,
        ServerSource,
        engine_names,
        is_folder,
        model_dir,
        server_spec,
    )

    names = engine_names(engines)
    protocols: Any = ("grpc", "http") if protocol == "both" else (protocol,)
    if random_weights is not None:
        if targets or not names:
            raise UsageError(
                "--random-weights takes the place of a TARGET, and needs --engines",
                cure="modelkit bench --random-weights qwen2-7b --engines vllm",
            )
        architectures = [name.strip() for name in random_weights.split(",") if name.strip()]
        for architecture in architectures:
            read_config(architecture)
        return [
            RandomSource(
                architecture=architecture,
                engine=engine,
                protocols=protocols,
                base=base,
                max_model_len=max_model_len,
                overrides=overrides,
            )
            for architecture in architectures
            for engine in names
        ]
    chosen: list[str | None] = [*names] if names else [None]
    sources: list[Source] = []
    places = list(targets) or ["."]
    num_folders = sum(map(is_folder, places))
    for place in places:
        if not is_folder(place):
            if engines is not None:
                raise UsageError(
                    f"{place} runs already: --engines serves folders",
                    cure="name a model folder, or leave --engines out",
                )
            sources.append(ServerSource(server_spec(place, base), tokenizer))
            continue
        folder = model_dir(place)
        sources += [
            FolderSource(
                folder=folder,
                engine=engine,
                protocols=protocols,
                base=base,
                environment=environment,
                overrides=overrides,
                prefix=f"{folder.resolve().name} " if num_folders > 1 and engine else "",
            )
            for engine in chosen
        ]
    return sources


# ------------------------------------------------------------------------------------------------------------- measuring


def _open_store(
    settings: "Settings",
    sources: "Sequence[Source]",
    output: Path | None,
    asked: dict[str, Any],
) -> "Store":
    from modelkit import __version__
    from modelkit.benchmark import metrics
    from modelkit.benchmark.machine import describe_host
    from modelkit.benchmark.results import SCHEMA_VERSION, Store
    from modelkit.benchmark.runner import default_folder
    from modelkit.benchmark.subjects import names_by_folder

    home = next(iter(names_by_folder(sources)), Path())
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%d-%H%M%S}"
    names = [name for source in sources for name in source.names]
    if len(set(names)) < len(names):
        raise UsageError(
            f"the same thing is measured twice: {', '.join(names)}", cure="name each TARGET once"
        )
    header = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "started_at": started.isoformat(timespec="seconds"),
        "tool": {"name": "modelkit bench", "version": __version__},
        "command": ["modelkit", *sys.argv[1:]],
        "git": _git(home),
        "host": describe_host(),
        "settings": {
            "subjects": names,
            **asked,
            "workload": settings.workload.as_json(),
            "concurrency": list(settings.concurrency),
            "sweep_to": settings.sweep_to,
            "rates": list(settings.rates),
            "trace": settings.trace is not None,
            "burst": settings.burst,
            "num_requests": list(settings.num_requests),
            "duration_s": settings.duration_s,
            "repeats": settings.repeats,
            "slo": [str(objective) for objective in settings.objectives],
        },
        "definitions": metrics.__doc__,
    }
    store = Store.open(output or default_folder(home, run_id), header)
    if store.run["levels"]:
        num = len(store.run["levels"])
        console.info(f"{store.folder} has {num} {'level' if num == 1 else 'levels'} already; going on")
    return store


def _git(folder: Path) -> dict[str, Any] | None:
    """Return the commit that the folder is at; None where it is in no repository."""
    import subprocess

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _measure(sources: "Sequence[Source]", settings: "Settings", store: "Store") -> list[ModelkitError]:
    """Measure everything; one engine that does not start is told, and the others go on."""
    from modelkit.benchmark.runner import run_subject
    from modelkit.cli.bench_view import View

    failed: list[ModelkitError] = []

    async def run() -> None:
        with View() as view:
            for source in sources:
                if _is_finished(source, settings, store):
                    continue
                try:
                    async with source.open(store.folder, view.stage) as subjects:
                        first = subjects[0]  # the others are of the same server
                        for text in first.info.get("warnings", ()):
                            view.warn(f"{first.name}: {text}")
                        for subject in subjects:
                            await run_subject(subject, settings, store, view)
                except ModelkitError as error:
                    if len(sources) == 1:
                        raise
                    failed.append(error)
                    view.fail(error)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        num = len(store.run["levels"])
        console.warning(
            f"cut off after {num} finished {'level' if num == 1 else 'levels'}",
            cure=f"the same command with --output {store.folder} goes on",
        )
        raise
    return failed


def _is_finished(source: "Source", settings: "Settings", store: "Store") -> bool:
    """Whether all levels of a source are in the store, so that nothing has to be served for them."""
    from modelkit.benchmark.runner import planned

    if settings.sweep_to is not None:
        return all(
            any(s["name"] == name and "sweep" in s for s in store.run["subjects"]) for name in source.names
        )
    return all(store.level(plan.id) for name in source.names for plan in planned(name, settings))


def _finish(store: "Store", sources: "Sequence[Source]", *, export: str | None, as_json: bool) -> int:
    """Write the report and each folder's record, print the table, and return 1 where an objective was missed."""
    from modelkit.benchmark.compare import winners
    from modelkit.benchmark.latest import write_latest
    from modelkit.benchmark.report import write_report
    from modelkit.benchmark.subjects import names_by_folder
    from modelkit.cli.bench_view import table

    run = store.run
    if not run["levels"]:
        return 1
    written = write_report([store.folder], store.folder / "report.html")
    for folder, names in names_by_folder(sources).items():
        write_latest(folder, run, names)
    if export == "vllm":
        _export_vllm(store)
    if as_json:
        console.json(run)
    else:
        console.result(table(run))
        for line in winners(run):
            console.result(line)
    for doubt in _doubts(run):
        console.warning(doubt)
    console.info(f"the report is {written.page}; `modelkit bench compare` tells it from another run")
    missed = sorted(
        {name for level in run["levels"] for name, met in level["metrics"]["slo"].items() if not met}
    )
    if missed:
        console.warning(f"missed: {', '.join(missed)}")
    all_failed = any(not level["metrics"]["n_ok"] for level in run["levels"])
    return int(bool(missed) or all_failed)


def _doubts(run: dict[str, Any]) -> list[str]:
    """Return why figures may not be the server's, once for each load; the report has them all."""
    found: dict[tuple[str, str], str] = {}
    for level in run["levels"]:
        for reason in (*level["metrics"]["verdict"], *level["metrics"]["notes"]):
            found.setdefault((level["subject"], level["load"]), reason)
    lines = [f"{subject}, {load}: {reason}" for (subject, load), reason in found.items()]
    more = len(lines) - _MAX_DOUBTS
    return [*lines[:_MAX_DOUBTS], *([f"and {more} more loads, which the report shows"] if more > 0 else [])]


def _export_vllm(store: "Store") -> None:
    import json

    from modelkit.benchmark.results import as_vllm

    folder = store.folder / "vllm"
    folder.mkdir(exist_ok=True)
    for level in store.run["levels"]:
        name = "".join(char if char.isalnum() or char in "=-." else "_" for char in level["id"])
        (folder / f"{name}.json").write_text(
            json.dumps(as_vllm(store.run, level), indent=2), encoding="utf-8"
        )
