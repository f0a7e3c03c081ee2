"""`modelkit init`: a new model folder from a template, complete enough to pass `modelkit validate` at once."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from modelkit.cli import console
from modelkit.errors import UsageError, closest
from modelkit.resources import template_names, templates_dir

if TYPE_CHECKING:
    from modelkit.engines import EngineInfo

__all__ = ["command", "scaffold"]

DEFAULT_TEMPLATE = "python"
DEFAULT_LLM_TEMPLATE = "transformers"
REMOTE_TEMPLATE = "openai"
# The block of the engine's image, which `modelkit build` renders: a folder of its own would stop following it.
DOCKERFILE = "Dockerfile.j2"
# What the templates of all engines have in common: a file of the engine's own takes the place of one of these.
ENGINE_BASE = "_engine"
# Small (270 MB), ungated and Apache-2.0: the first answer comes soon, also on a CPU.
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Beside the config, so that editors find it without a network and in the version this folder was made with.
SCHEMA_FILE = ".modelkit/config.schema.json"

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_PLAIN_YAML = re.compile(r"[A-Za-z./][A-Za-z0-9._/-]*")
_YAML_WORDS = frozenset({"true", "false", "null", ".inf", ".nan"})


class Checkpoint(NamedTuple):
    """The `checkpoints` section of a new config: its type, and the key that says where."""

    type: str
    key: str
    value: str


def _folder(text: str) -> Path:
    """Read the folder's name; an empty one, of a variable that is not set, would mean the current folder."""
    if not text.strip():
        raise UsageError("the folder's name is empty", cure="give it a name; '.' is the current folder")
    return Path(text)


def command(
    target: Annotated[
        Path, typer.Argument(metavar="NAME_OR_PATH", help="The folder to make.", parser=_folder)
    ],
    *,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="Run a language model on this engine.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="NAME", help="The template, where it is not the engine's."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="REPO_OR_FOLDER",
            help="The checkpoint: org/name on the Hub, or a folder. With --engine openai the model's name there.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are in the way.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")] = False,
) -> None:
    """Write a new model folder from a template."""
    may_ask = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    name = _choose_template(engine, template, model, may_ask=may_ask)
    remote_model = model if name == REMOTE_TEMPLATE else None
    checkpoint = None if name == REMOTE_TEMPLATE else _choose_checkpoint(name, model, target, may_ask=may_ask)
    files = scaffold(target, name, checkpoint, remote_model=remote_model, force=force)
    console.success(f"wrote {target}: {', '.join(files)}")
    console.info(_next_steps(target, name))


def scaffold(
    target: Path,
    template: str,
    checkpoint: Checkpoint | None,
    *,
    remote_model: str | None = None,
    force: bool = False,
) -> list[str]:
    """Write the files of a template below `target` and return their names. Replaces files only with `force`."""
    from modelkit.config import json_schema

    values = {
        "id": _yaml(_model_id(target)),
        "schema_file": f"./{SCHEMA_FILE}",
        "checkpoint": checkpoint and checkpoint._replace(value=_yaml(checkpoint.value)),
        "engine": {
            "name": template,
            "version": _pinned_version(template),
            "model": remote_model and _yaml(remote_model),
        },
    }
    files = _render(template, values) | {SCHEMA_FILE: json.dumps(json_schema(), indent=2) + "\n"}
    _refuse_overwriting(target, list(files), force=force)
    _write(target, files)
    return list(files)


def _choose_template(engine: str | None, template: str | None, model: str | None, *, may_ask: bool) -> str:
    names = template_names()
    if engine is not None and template is not None and engine != template:
        raise UsageError(
            f"--engine {engine} and --template {template} are two templates", cure="give one of the two"
        )
    choice = engine or template
    if choice is None:
        default = DEFAULT_TEMPLATE if model is None else DEFAULT_LLM_TEMPLATE
        if not may_ask or model is not None:
            return default
        choice = str(typer.prompt(f"Template ({', '.join(names)})", default=default, err=True)).strip()
    if choice in names and choice != (engine and DEFAULT_TEMPLATE):
        return choice
    if choice == engine == DEFAULT_TEMPLATE:
        raise UsageError(
            f"'{choice}' is a template without an engine, not an engine", cure=f"write --template {choice}"
        )
    guess = closest(choice, names)
    cure = f"did you mean '{guess}'? " if guess else ""
    kind = "engine" if engine else "name"
    raise UsageError(
        f"there is no template for the {kind} '{choice}'", cure=f"{cure}there are: {', '.join(names)}"
    )


def _choose_checkpoint(template: str, model: str | None, target: Path, *, may_ask: bool) -> Checkpoint | None:
    if template == DEFAULT_TEMPLATE:
        if model is not None:
            cure = f"use --template {DEFAULT_LLM_TEMPLATE}, or leave --model out"
            raise UsageError(f"the template '{template}' has no engine to run {model}", cure=cure)
        return None
    if model is None:
        question = "Checkpoint (org/name on the Hub, or a folder)"
        model = str(typer.prompt(question, default=DEFAULT_MODEL, err=True)) if may_ask else DEFAULT_MODEL
    return _checkpoint(model.strip(), target)


def _checkpoint(model: str, target: Path) -> Checkpoint:
    folder = Path(model).expanduser()
    if folder.is_dir():
        # A relative path is meant from here; config.yaml wants it from the model folder.
        path = str(folder) if folder.is_absolute() else os.path.relpath(folder.resolve(), target.resolve())
        return Checkpoint("local", "path", path)
    if _REPO_ID.fullmatch(model):
        return Checkpoint("huggingface", "repo_id", model)
    if model.startswith((".", "/", "~")):
        raise UsageError(f"there is no folder {model}", cure="--model takes a folder, or org/name on the Hub")
    raise UsageError(
        f"'{model}' is no checkpoint", cure="--model takes org/name on the Hub, or a folder: ./weights"
    )


def _model_id(target: Path) -> str:
    """Make a valid model id of the folder's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", target.resolve().name)[:64].strip("-._")
    return name or "model"


def _yaml(text: str) -> str:
    """Write a text as a YAML value: in quotes only where YAML would read something else."""
    if _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _render(template: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the template's files by name: *.j2 are filled in, the others are as they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,  # noqa: S701 - YAML and Python, never HTML
    )
    files = {}
    for name, path in sorted(_template_files(template).items()):
        if path.suffix == ".j2":
            files[name] = environment.get_template(f"{path.parent.name}/{path.name}").render(values)
        else:
            files[name] = path.read_text(encoding="utf-8")
    return files


def _template_files(template: str) -> dict[str, Path]:
    """Return where each file of a template is, by its name in the model folder."""
    layers = (template,) if _engine_info(template) is None else (ENGINE_BASE, template)
    return {
        path.name.removesuffix(".j2"): path
        for layer in layers
        for path in (templates_dir() / layer).iterdir()
        if path.is_file() and path.name != DOCKERFILE
    }


def _engine_info(template: str) -> "EngineInfo | None":
    """Return what the catalog says of a template's engine; None where it has none."""
    from modelkit.engines import ENGINES

    return ENGINES.get(template)


def _pinned_version(template: str) -> str | None:
    """Return the version that a new folder's engine has, where the folder decides on one."""
    info = _engine_info(template)
    return info.builds["gpu"].version if info is not None and info.builds else None


def _refuse_overwriting(target: Path, names: list[str], *, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", cure="choose another name")
    in_the_way = [name for name in names if (target / name).exists() or (target / name).is_symlink()]
    if in_the_way and not force:
        them = "it" if len(in_the_way) == 1 else "them"
        raise UsageError(
            f"{target} already has {', '.join(in_the_way)}",
            cure=f"choose another folder, or replace {them} with --force; nothing else in the folder is touched",
        )


def _write(target: Path, files: Mapping[str, str]) -> None:
    """Write the files aside and move them into place: a full disk leaves what was there, and nothing else."""
    shown = target
    near = next(folder for folder in (target, *target.parents) if os.path.lexists(folder))
    try:
        with TemporaryDirectory(prefix=".modelkit-", dir=near) as staging:
            for name, text in files.items():
                shown, path = target / name, Path(staging) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            for name in files:
                shown = target / name
                shown.parent.mkdir(parents=True, exist_ok=True)
                (Path(staging) / name).replace(shown)  # a link is replaced, not followed to a file elsewhere
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be written: {error.strerror}",
            cure="choose another folder, or make room or writable",
        ) from error


def _next_steps(target: Path, template: str) -> str:
    folder = f"'{target}'" if re.search(r"[^\w./-]", str(target)) else str(target)
    lines = (target / "requirements.txt").read_text(encoding="utf-8").splitlines()
    steps = [
        f"modelkit validate {folder}",
        f"modelkit serve {folder} --local",
        'modelkit predict "Hello"   # in another terminal',
    ]
    if _pinned_version(template) is not None:
        # Not from requirements.txt: that would put the engine beside modelkit, and its CUDA build at that.
        steps.insert(0, f"modelkit engines install {template}")
    elif any(line.strip() and not line.startswith("#") for line in lines):
        steps.insert(0, f"pip install -r {folder}/requirements.txt")
    return "\n".join(["", "Next:", *(f"  {step}" for step in steps)])
