"""From a model folder on disk to a Model that is ready to be loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path

from modelkit.checkpoints.resolve import prepare
from modelkit.config import Config
from modelkit.errors import LoadError
from modelkit.model import Model, ModelContext, import_checked_class

__all__ = ["open_model"]


def open_model(
    model_dir: Path,
    config: Config,
    report_progress: Callable[[str], None] = lambda _: None,
    prepare_checkpoints: Callable[[], Mapping[str, Path]] | None = None,
) -> Model:
    """Import model.py, find its checkpoints on disk (fetching them where they are not), and make the Model.

    Raises ConfigError with every problem of model.py, before anything is fetched; LoadError for the checkpoints.
    `report_progress` hears what the model's `load` is doing. `prepare_checkpoints` returns the checkpoints' folders by
    name, where that is not to be done in silence and as the environment says.
    """
    model_class = import_checked_class(model_dir)
    report_progress("finding the checkpoint")
    checkpoint_dirs = prepare(config, model_dir) if prepare_checkpoints is None else prepare_checkpoints()
    try:
        model = model_class()
    except Exception as error:  # author's code may raise anything
        raise LoadError(
            f"making a {model_class.__name__} raised {type(error).__name__}: {error}",
            cure="leave __init__ out, or let it take nothing but self; prepare the model in load",
        ) from error
    model.context = ModelContext(config, model_dir, checkpoint_dirs, report_progress)
    return model
