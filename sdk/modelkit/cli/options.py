"""Options and defaults that mean the same in several verbs, said once."""

from typing import Annotated

import typer

__all__ = ["DEFAULT_TIMEOUT_S", "Environment", "Offline", "Overrides"]

# How long a deployment may take until it answers: engines compile, weights are fetched.
DEFAULT_TIMEOUT_S = 1800.0

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
