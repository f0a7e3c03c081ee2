"""`modelkit parity`: one folder, several engines, the same questions: do they answer the same?"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Overrides
from modelkit.config import Config, load_config
from modelkit.errors import ModelkitError, UsageError

if TYPE_CHECKING:
    from modelkit.engines.parity import Comparison, Prompt, Run

__all__ = ["command"]

_SHOWN_DIVERGENCES = 3
_SHOWN_CHARS = 40


def command(
    path: Annotated[Path, typer.Argument(help="The model folder.")] = Path(),
    *,
    engines: Annotated[
        str,
        typer.Option(
            metavar="A,B,...", help="Engines to compare with the first: vllm,transformers,lmdeploy:pytorch."
        ),
    ],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line, or JSON lines with 'messages'.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each answer.")] = 128,
    concurrency: Annotated[int, typer.Option(min=1, help="Prompts that are asked at the same time.")] = 8,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Fail where an engine agrees less than this with the first.")
    ] = 0.0,
    environment: Environment = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> int:
    """Compare the answers of several engines on one folder."""
    from modelkit.engines.parity import compare, read_prompts

    names = [name.strip() for name in engines.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):  # noqa: PLR2004 - a comparison takes two
        raise UsageError(
            "a comparison takes two engines or more, each once", cure="such as --engines vllm,transformers"
        )
    config = load_config(path, environment=environment, overrides=overrides or ())
    configs = {name: _switched(config, name) for name in names}
    asked = read_prompts(prompts, _checkpoint_dir(path, config))
    runs: list[Run] = []
    failed: dict[str, ModelkitError] = {}
    for name in names:
        try:
            runs.append(asyncio.run(_run(name, path, configs[name], asked, max_tokens, concurrency)))
        except ModelkitError as error:
            if name == names[0]:
                raise
            failed[name] = error
            console.error(error)
    comparisons = [compare(runs[0], run, asked) for run in runs]
    if as_json:
        console.json(_as_json(runs, comparisons, failed, len(asked)))
    else:
        _print(runs, comparisons, failed, len(asked))
    return int(bool(failed) or any(found.agreement < min_agreement for found in comparisons))


def _switched(config: Config, name: str) -> Config:
    from modelkit.engines.switching import switch_engine

    switched, left_out = switch_engine(config, name)
    if left_out:
        options = ", ".join(f"engine.{option}" for option in left_out)
        console.info(f"{name}: without {options}, spelled for another engine")
    return switched


def _checkpoint_dir(path: Path, config: Config) -> Path | None:
    from modelkit.cli.checkpoints import prepare_checkpoints

    return next(iter(prepare_checkpoints(config, path).values()), None)


async def _run(
    name: str, path: Path, config: Config, prompts: "Sequence[Prompt]", max_tokens: int, concurrency: int
) -> "Run":
    """Start the folder's model on one engine, ask everything, and stop it again."""
    from modelkit.engines.llm import LLM
    from modelkit.engines.parity import answer_all
    from modelkit.server.folder import open_model

    with console.status(f"starting {name}") as change:
        model = open_model(path, config, lambda stage: change(f"starting {name}: {stage}"))
        if not isinstance(model, LLM):
            raise UsageError("the model is no LLM", cure="parity compares engines, which run language models")
        try:
            await model.load()
            change(f"{name} answers {len(prompts)} prompts")
            return await answer_all(
                name, model.engine, prompts, max_tokens=max_tokens, concurrency=concurrency
            )
        finally:
            await model.close()


def _print(
    runs: "Sequence[Run]",
    comparisons: "Sequence[Comparison]",
    failed: dict[str, ModelkitError],
    num_prompts: int,
) -> None:
    width = max(len(name) for name in [*failed, *(run.engine for run in runs)])
    console.result(
        f"{'engine':{width}}  {'exact':>9}  {'agreement':>9}  {'first difference':>16}  {'tokens/s':>8}"
    )
    for run, found in zip(runs, comparisons, strict=True):
        first = min((one.position for one in found.divergences), default=None)
        where = "-" if first is None else f"character {first}"
        exact = f"{found.num_exact} of {num_prompts}"
        console.result(
            f"{run.engine:{width}}  {exact:>9}  {found.agreement:>9.1%}  {where:>16}  {run.tokens_per_s:>8.1f}"
        )
    for name in failed:
        console.result(f"{name:{width}}  {'failed':>9}")
    for found in comparisons:
        for one in found.divergences[:_SHOWN_DIVERGENCES]:
            start = max(0, one.position - _SHOWN_CHARS // 2)
            console.result(f"\n{found.engine}, {one.prompt[:_SHOWN_CHARS]!r}, character {one.position}:")
            console.result(f"  {runs[0].engine:{width}}  {one.expected[start : start + _SHOWN_CHARS]!r}")
            console.result(f"  {found.engine:{width}}  {one.answer[start : start + _SHOWN_CHARS]!r}")


def _as_json(
    runs: "Sequence[Run]",
    comparisons: "Sequence[Comparison]",
    failed: dict[str, ModelkitError],
    num_prompts: int,
) -> dict[str, Any]:
    rows = [
        {
            "engine": run.engine,
            "num_exact": found.num_exact,
            "agreement": found.agreement,
            "first_divergences": [
                {"prompt": one.prompt, "position": one.position} for one in found.divergences
            ],
            "tokens_per_s": run.tokens_per_s,
            "num_output_tokens": run.num_output_tokens,
        }
        for run, found in zip(runs, comparisons, strict=True)
    ]
    return {
        "reference": runs[0].engine,
        "num_prompts": num_prompts,
        "engines": rows,
        "failed": {name: error.message for name, error in failed.items()},
    }
