"""From a model folder on disk to a Model that is ready to be loaded."""

from collections.abc import Callable
from pathlib import Path

from modelkit.checkpoints import resolve
from modelkit.config import Config
from modelkit.errors import ConfigError
from modelkit.model import Model, ModelContext, check_model, import_model_class

__all__ = ["open_model"]


def open_model(
    model_dir: Path, config: Config, report_progress: Callable[[str], None] = lambda _: None
) -> Model:
    """Import model.py, find its checkpoint on disk (fetching it where it is not), and make the Model.

    Raises ConfigError with every problem of model.py, before anything is fetched; LoadError for the checkpoint.
    `report_progress` hears what the model's `load` is doing.
    """
    problems = [problem for problem in check_model(model_dir) if problem.severity == "error"]
    if problems:
        raise ConfigError(problems)
    model_class = import_model_class(model_dir)
    checkpoint_dirs: dict[str, Path] = {}
    if config.checkpoints is not None:
        checkpoint_dirs["default"] = resolve(config.checkpoints, model_dir)
    model = model_class()
    model.context = ModelContext(config, model_dir, checkpoint_dirs, report_progress)
    return model
