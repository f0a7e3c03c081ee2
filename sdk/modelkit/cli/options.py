"""Options that mean the same in every verb that reads a model folder, said once."""

from typing import Annotated

import typer

__all__ = ["Environment", "Offline", "Overrides"]

Environment = Annotated[
    str | None,
    typer.Option("--env", metavar="NAME", help="Lay config.NAME.yaml over config.yaml. [MODELKIT_ENV]"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key: engine.max_model_len=8192."),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Open no connection: weights must be in place."),
]
