"""`modelkit validate`: every mistake in config.yaml and model.py, found in one run without loading the model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Overrides
from modelkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from modelkit.config import Config

__all__ = ["command"]

EXIT_PROBLEMS = 2


def command(
    path: Annotated[Path, typer.Argument(help="The model folder, or its config.yaml.")] = Path(),
    *,
    environment: Environment = None,
    overrides: Overrides = None,
    output_format: Annotated[
        console.Format, typer.Option("--format", help="How problems are printed; github makes annotations.")
    ] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    skip_fit: Annotated[
        bool, typer.Option("--skip-fit", help="Do not check that the weights fit on the accelerator.")
    ] = False,
) -> int:
    """Find every mistake in a model folder."""
    from modelkit.config import check_config, find_config

    config, problems = check_config(path, environment=environment, overrides=overrides or ())
    methods: list[str] = []
    if os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a path that the system refuses
        model_problems, methods = _check_model(find_config(path).parent, config)
        problems += model_problems
    if config is not None and not skip_fit:
        problems += _check_fit(config, path, environment, overrides or [])
    console.problems(problems, output_format)
    if any(strict or problem.severity == "error" for problem in problems):
        return EXIT_PROBLEMS
    assert config is not None
    console.success(_summary(config, methods))
    return 0


def _check_fit(config: "Config", path: Path, environment: str | None, overrides: list[str]) -> list[Problem]:
    """Return why the checkpoint does not fit on the accelerator that config.yaml asks for, if both are known here."""
    if config.engine is None or config.checkpoints is None or not config.compute.num_accelerators:
        return []
    from modelkit.config import find_config, place_of
    from modelkit.fit import check_fit, device_of_compute

    device = device_of_compute(config.compute)
    finding = check_fit(config, find_config(path).parent, device) if device is not None else None
    if finding is None:
        return []
    cure = f"{finding.cure}; --skip-fit leaves this check out"
    place = place_of(path, finding.keys, environment=environment, overrides=overrides)
    if place is None:
        return [Problem(finding.message, cure, find_config(path), severity=finding.severity)]
    return [place.problem(finding.message, cure, severity=finding.severity)]


def _check_model(model_dir: Path, config: "Config | None") -> tuple[list[Problem], list[str]]:
    """Return the problems of model.py and, where there are none, the names of its methods."""
    from modelkit.model import find_model_file, import_checked_class, method_names

    try:
        model_class = import_checked_class(model_dir)
    except ConfigError as error:
        return list(error.problems), []
    problems: list[Problem] = []
    if config is not None and config.engine is None and _is_llm(model_class):
        message = f"{model_class.__name__} is an LLM, and config.yaml names no engine to run it"
        cure = "add 'engine:' with 'name: transformers' below it, or subclass modelkit.Model instead"
        problems = [Problem(message, cure, find_model_file(model_dir))]
    return problems, method_names(model_class)


def _is_llm(model_class: type) -> bool:
    """Tell whether a class is an LLM, by name: importing that class would cost more than the whole check."""
    return any(
        (base.__module__, base.__name__) == ("modelkit.engines.llm", "LLM") for base in model_class.__mro__
    )


def _summary(config: "Config", methods: list[str]) -> str:
    engine = f"engine {config.engine.name}" if config.engine is not None else "no engine"
    noun = "method" if len(methods) == 1 else "methods"
    return f"{config.model.id} is valid: {engine}, {noun} {', '.join(methods)}"
