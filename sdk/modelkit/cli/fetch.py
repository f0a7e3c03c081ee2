"""`modelkit fetch`: the weights of a model folder onto this machine, before anything needs them."""

from pathlib import Path
from typing import Annotated

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Offline, Overrides

__all__ = ["command"]


def command(
    path: Annotated[Path, typer.Argument(help="The model folder, or its config.yaml.")] = Path(),
    *,
    environment: Environment = None,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is in place too, and fetch anew what is damaged.")
    ] = False,
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print each checkpoint's folder as JSON.")] = False,
) -> None:
    """Fetch a model's weights: resumed, verified, once."""
    from modelkit.checkpoints.resolve import discard_damaged, prepare
    from modelkit.cli.checkpoints import is_own_config, load_folder, terms_in_view
    from modelkit.config import find_config

    config = load_folder(path, environment, overrides or ())
    model_dir = find_config(path).parent
    if verify:
        with terms_in_view("reading", offline=offline) as terms:
            discard_damaged(model_dir, terms)
    with terms_in_view(offline=offline, writes_lock=is_own_config(environment, overrides)) as terms:
        folders = prepare(config, model_dir, terms)
    if json:
        console.json({name: str(folder) for name, folder in folders.items()})
        return
    if not folders:
        console.info(f"{config.model.id} has no checkpoints")
    for name, folder in folders.items():
        console.success(f"{name} is in {folder}")
