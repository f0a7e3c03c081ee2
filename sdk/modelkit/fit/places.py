"""Where the files of a model's checkpoint can be read: on this machine, or a few ranges of them at their source."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelkit.checkpoints import open_source
from modelkit.checkpoints.lock import DEFAULT_NAME, Lock
from modelkit.checkpoints.resolve import find_checkpoint
from modelkit.config import Config
from modelkit.errors import LoadError
from modelkit.fit.headers import CheckpointReader, LocalReader, SourceReader

__all__ = ["open_checkpoint"]


@contextmanager
def open_checkpoint(config: Config, model_dir: Path, *, offline: bool) -> Iterator[CheckpointReader]:
    """Open the files of a model's checkpoint, at the commit that modelkit.lock pins where there is one.

    Raises LoadError where they are neither here nor, unless `offline`, at their source.
    """
    assert config.checkpoints is not None
    folder = find_checkpoint(config, model_dir)
    if folder is not None:
        yield LocalReader(folder)
        return
    if offline:
        where = config.checkpoints.repo_id or config.checkpoints.path or config.checkpoints.type
        raise LoadError(
            f"the checkpoint {where} is not on this machine, so its config.json cannot be read",
            cure="`modelkit fetch` it first, or let it be read over the network: without --offline and HF_HUB_OFFLINE",
        )
    lock = Lock.read(model_dir)
    pinned = lock.checkpoints.get(DEFAULT_NAME) if lock is not None else None
    with open_source(config.checkpoints, model_dir, pinned.commit if pinned else None) as source:
        yield SourceReader(source)
