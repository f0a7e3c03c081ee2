"""Which Python runs an engine: one that is named, this one, or one that modelkit makes per engine and version and keeps.

Engines exclude each other's torch, so none of them can share an environment with another. A kept environment is a
folder such as `vllm-0.26.0` below `engines_dir()`. It counts from the moment its record is written, which happens last
and in one step; a folder without a record is the remains of an attempt that was cut off, and is never used. (It is not
made elsewhere and moved: the scripts in a virtual environment name its path.)
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from modelkit.config import EngineConfig
from modelkit.engines.catalog import ENGINES, Build, EngineInfo, Hardware
from modelkit.engines.installers import Installer, Progress, choose_installer
from modelkit.engines.machine import has_nvidia_gpu
from modelkit.errors import EngineError, UsageError, closest

__all__ = [
    "Environment",
    "engines_dir",
    "find_python",
    "install",
    "installed_version",
    "list_environments",
    "parse_requirement",
    "remove",
]

RECORD = "modelkit.json"

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_-]+)(?:==(?P<version>[0-9][0-9A-Za-z.+]*))?")
_PROBE_TIMEOUT_S = 60.0
# Run by an interpreter that may be older than ours: it says which version of a module it has, and imports nothing.
_PROBE = """
import importlib.metadata, importlib.util, sys
name = sys.argv[1]
try:
    print(importlib.metadata.version(name) if importlib.util.find_spec(name) else "")
except importlib.metadata.PackageNotFoundError:
    print("")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One kept environment: an engine, at a version, built for a kind of hardware."""

    engine: str
    version: str
    hardware: Hardware
    folder: Path
    size_bytes: int

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def requirement(self) -> str:
        """What `install` and `remove` call it, such as "vllm==0.26.0"."""
        return f"{self.engine}=={self.version}"


def engines_dir() -> Path:
    """Return the folder of kept environments: MODELKIT_ENGINES_DIR, or modelkit/engines in the user's data folder."""
    given = os.environ.get("MODELKIT_ENGINES_DIR")
    if given:
        return Path(given).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "modelkit" / "engines"


def list_environments() -> list[Environment]:
    """Return the kept environments, by name."""
    root = engines_dir()
    folders = sorted(folder for folder in root.iterdir() if folder.name[0] != ".") if root.is_dir() else []
    return [found for folder in folders if (found := _read(folder)) is not None]


def find_python(engine: str, config: EngineConfig, on_stage: Callable[[str], None]) -> str:
    """Return the interpreter that runs `engine`, making its environment where there is none yet.

    Blocks, for minutes where something has to be installed; `on_stage` hears what goes on. Raises EngineError where
    `engine.python` will not do, where the engine has no build for this machine, or where the installation fails.
    """
    info = ENGINES[engine]
    if config.python is not None:
        return _check_python(engine, info, config.python, config.version)
    here = info.version_here()
    if not info.builds or (here is not None and _same_version(here, config.version or here)):
        return sys.executable
    hardware = _hardware()
    build = _build(engine, config.version, hardware)
    kept = _read(_folder(engine, build, hardware))
    if kept is None:
        kept = _make(engine, build, hardware, Progress(on_stage))
    return str(kept.python)


def installed_version(engine: str, config: EngineConfig) -> str | None:
    """Return the version that `engine` runs with this config; None where it is none of Python's, or not installed yet.

    Installs nothing. Raises EngineError where `engine.python` will not do.
    """
    info = ENGINES[engine]
    if config.python is not None:
        return (
            _version_in(Path(_check_python(engine, info, config.python, config.version)), info.module) or None
        )
    here = info.version_here()
    if not info.builds or (here is not None and _same_version(here, config.version or here)):
        return here
    hardware = _hardware()
    kept = _read(_folder(engine, _build(engine, config.version, hardware), hardware))
    return kept.version if kept else None


def install(requirement: str, progress: Progress | None = None, *, force: bool = False) -> Environment:
    """Make the environment of "vllm" (its pinned version) or "vllm==0.26.0", and return it; one that is there is kept.

    `force` makes it anew; where that fails, the old one stays. Raises UsageError for what modelkit does not install,
    EngineError where the installation fails.
    """
    engine, version = parse_requirement(requirement)
    hardware = _hardware()
    build = _build(engine, version, hardware)
    return _make(engine, build, hardware, progress or Progress(), force=force)


def remove(requirement: str) -> list[Environment]:
    """Delete the environments that "vllm==0.26.0" names, or "vllm" where there is one only; return what was deleted."""
    engine, version = parse_requirement(requirement)
    kept = [found for found in list_environments() if found.engine == engine]
    chosen = [found for found in kept if version is None or _same_version(found.version, version)]
    names = list(dict.fromkeys(found.requirement for found in kept))
    if not chosen:
        there = f"there are: {', '.join(names)}" if names else "`modelkit engines` lists what is installed"
        raise UsageError(f"modelkit keeps no environment of {requirement}", cure=there)
    if version is None and len(names) > 1:
        raise UsageError(f"there are {len(names)} versions of {engine}", cure=f"name one: {', '.join(names)}")
    for found in chosen:
        with _lock(found.folder, Progress()):
            _delete(found.folder)
    return chosen


# ------------------------------------------------------------------------------------------------------- which Python


def _check_python(engine: str, info: EngineInfo, python: str, version: str | None) -> str:
    """Return `engine.python` as a path. Raises EngineError where it is absent, broken, or lacks the engine."""
    path = shutil.which(str(Path(python).expanduser()))
    if path is None:
        raise EngineError(
            f"engine.python is {python}, and there is no such program",
            cure=f"correct it in config.yaml, or remove it: modelkit then makes an environment for {engine}",
        )
    if not info.builds:
        return path
    found = _version_in(Path(path), info.module)
    if not found:
        wanted = f"{engine}=={version}" if version else engine
        raise EngineError(
            f"engine.python is {python}, which has no {engine} installed",
            cure=f"install it there (`{python} -m pip install {wanted}`), or remove engine.python",
        )
    if version is not None and not _same_version(found, version):
        raise EngineError(
            f"engine.python has {engine} {found}, and engine.version is {version}",
            cure="change one of the two in config.yaml",
        )
    return path


def _version_in(python: Path, module: str) -> str:
    """Return the version of a module that another interpreter has, "" for none. Raises EngineError if it does not run."""
    command = [str(python), "-c", _PROBE, module]
    try:
        probe = subprocess.run(  # noqa: S603 - the interpreter that the user named
            command, capture_output=True, text=True, check=False, timeout=_PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{python} cannot be run: {error}", cure="name a Python interpreter") from error
    if probe.returncode != 0:
        last = (probe.stderr.strip() or f"exit code {probe.returncode}").splitlines()[-1]
        raise EngineError(f"{python} is no working Python: {last}", cure="name a Python interpreter")
    return probe.stdout.strip()


def _same_version(one: str, other: str) -> bool:
    """Compare versions without what is after the "+", which says how it was built."""
    return one.partition("+")[0] == other.partition("+")[0]


def _hardware() -> Hardware:
    return "gpu" if has_nvidia_gpu() else "cpu"


def _build(engine: str, version: str | None, hardware: Hardware) -> Build:
    """Return what is installed here for a version. Raises EngineError where the engine has nothing for the hardware."""
    builds = ENGINES[engine].builds
    if hardware not in builds:
        others = [name for name, info in ENGINES.items() if hardware in info.builds]
        raise EngineError(
            f"{engine} runs on NVIDIA GPUs only, and this machine has none",
            cure=f"set engine.name to one that runs on a CPU: {', '.join([*others, 'transformers'])}; "
            "or name an interpreter that has your own build with engine.python",
        )
    build = builds[hardware]
    return replace(build, version=version.partition("+")[0]) if version else build


def parse_requirement(requirement: str) -> tuple[str, str | None]:
    """Return engine and version of "vllm==0.26.0". Raises UsageError where modelkit keeps no environment of it."""
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise UsageError(
            f"'{requirement}' names no engine", cure="write vllm, or a version of it: vllm==0.26.0"
        )
    name: str = match["name"]
    installable = [engine for engine, info in ENGINES.items() if info.builds]
    if name in installable:
        return name, match["version"]
    if name not in ENGINES:
        guess = closest(name, installable)
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise UsageError(f"there is no engine '{name}'{hint}", cure=f"there are: {', '.join(installable)}")
    extra = ENGINES[name].extra
    raise UsageError(
        f"the engine '{name}' has no environment of its own: {ENGINES[name].summary}",
        cure=f"pip install 'modelkit-sdk[{extra}]'" if extra else f"there are: {', '.join(installable)}",
    )


# ------------------------------------------------------------------------------------------------- making and keeping


def _folder(engine: str, build: Build, hardware: Hardware) -> Path:
    return engines_dir() / f"{engine}-{build.version}{'-cpu' if hardware == 'cpu' else ''}"


def _read(folder: Path) -> Environment | None:
    """Return the environment in a folder; None where it is none, or was not finished, or its Python is gone."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found = Environment(**{**record, "folder": folder})
    except (OSError, ValueError, TypeError):
        return None
    return found if found.python.exists() else None


def _make(
    engine: str, build: Build, hardware: Hardware, progress: Progress, *, force: bool = False
) -> Environment:
    """Return the environment, made now unless it is there; other processes that want it wait meanwhile."""
    folder = _folder(engine, build, hardware)
    with _lock(folder, progress):
        _recover(folder)
        kept = _read(folder)
        if kept is not None and not force:
            return kept
        installer = choose_installer()
        with _replacing(folder):
            progress.on_stage(f"making an environment for {engine} {build.version}, once")
            try:
                return _fill(folder, engine, build, hardware, installer, progress)
            except EngineError as error:
                message = f"{engine} {build.version} could not be installed: {error.message}"
                raise EngineError(message, cure=error.cure) from error


def _fill(
    folder: Path, engine: str, build: Build, hardware: Hardware, installer: Installer, progress: Progress
) -> Environment:
    python = installer.make_environment(folder, progress)
    installer.install(python, build, hardware, progress)
    if build.alias_version:
        _add_alias(python, engine, build)
    progress.on_stage("checking")
    found = _version_in(python, ENGINES[engine].module)
    if not _same_version(found, build.version):
        raise EngineError(
            f"the environment has {engine} {found or 'not'} after all", cure="report this as a bug"
        )
    made = Environment(
        engine=engine, version=build.version, hardware=hardware, folder=folder, size_bytes=_size_bytes(folder)
    )
    _write_record(made)
    return made


def _add_alias(python: Path, engine: str, build: Build) -> None:
    """Let the engine find its own version under its own name: metadata of a distribution that has no files."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    version = build.alias_version.format(version=build.version)
    folder = Path(library) / f"{engine}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {engine}\nVersion: {version}\n")


def _write_record(environment: Environment) -> None:
    """Write the record in one step: from now on the environment counts."""
    record = {
        "engine": environment.engine,
        "version": environment.version,
        "hardware": environment.hardware,
        "size_bytes": environment.size_bytes,
    }
    draft = environment.folder / f"{RECORD}.draft"
    draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draft.replace(environment.folder / RECORD)


def _size_bytes(folder: Path) -> int:
    """Return the size of all files; a link counts as nothing."""
    return sum((Path(path) / name).lstat().st_size for path, _, names in os.walk(folder) for name in names)


@contextmanager
def _replacing(folder: Path) -> Iterator[None]:
    """Let `folder` be made anew; whatever goes wrong, Ctrl-C too, what was there before is there again."""
    if _read(folder) is not None:
        folder.replace(_aside(folder))
    _delete(folder)
    try:
        yield
    except BaseException:
        _delete(folder)
        _recover(folder)
        raise
    _delete(_aside(folder))


def _aside(folder: Path) -> Path:
    """Return where an environment waits while another is made in its place."""
    return folder.with_name(f".{folder.name}.before")


def _recover(folder: Path) -> None:
    """Bring back what was put aside by an attempt that was not finished."""
    if _read(folder) is None and _read(_aside(folder)) is not None:
        _delete(folder)
        _aside(folder).replace(folder)


def _delete(folder: Path) -> None:
    """Delete an environment, its record first: what is left when this is cut off must not count."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of one environment; it ends with the process that holds it, however that ends."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise EngineError(
            f"{path.parent} cannot be written: {error.strerror}",
            cure="let MODELKIT_ENGINES_DIR name a folder for environments",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.on_stage(f"waiting for another process that works on {folder.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
