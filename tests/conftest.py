"""What holds for every test: a clean environment, no skip unnoticed in CI, nothing left running at the end.

The network outside this machine is off (pytest-socket, in pyproject.toml).
"""

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["fixtures_checkpoint", "fixtures_docker", "fixtures_registry", "kubernetes_cluster"]

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
# Inherited by every process a test starts, so that one left behind is found whoever its parent is now.
SESSION_VARIABLE = "PYTEST_SESSION_OF_MODELKIT"
HOME_VARIABLES = {
    "HOME": "",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
}
HOME_KEY = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    # MODELKIT_TEST_* say what this machine has for tests, such as a Python with a real engine.
    for name in [n for n in os.environ if n.startswith("MODELKIT_") and not n.startswith("MODELKIT_TEST_")]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="modelkit-tests-"))
    config.stash[HOME_KEY] = home
    os.environ.update({name: str(home / folder) for name, folder in HOME_VARIABLES.items()})
    os.environ.update(
        {
            SESSION_VARIABLE: uuid.uuid4().hex,
            "HF_HUB_OFFLINE": "1",
            # Two spinning threads on two busy cores are many times slower than one.
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # Output is compared as text: one width, no colours, whatever terminal runs the tests.
            "COLUMNS": "100",
            "NO_COLOR": "1",
        }
    )
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "PY_COLORS"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[HOME_KEY], ignore_errors=True)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where only tests marked 'gpu' may be: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if item.get_closest_marker("gpu") is None:
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report


def _started_by_this_session(process_dir: Path) -> bool:
    marker = f"{SESSION_VARIABLE}={os.environ[SESSION_VARIABLE]}".encode()
    try:
        return marker in (process_dir / "environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return False


def leftover_processes() -> list[str]:
    """Return "pid command line" of each process that a test started and did not end."""
    found = []
    for process_dir in Path("/proc").glob("[0-9]*"):
        if process_dir.name == str(os.getpid()) or not _started_by_this_session(process_dir):
            continue
        command = (process_dir / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        # multiprocessing's own helper, which ends with us.
        if "multiprocessing.resource_tracker" not in command:
            found.append(f"{process_dir.name} {command}")
    return found


def leftover_threads() -> list[str]:
    """Return the name of each thread that would keep the interpreter from ending."""
    threads = threading.enumerate()
    return [thread.name for thread in threads if thread is not threading.main_thread() and not thread.daemon]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process or thread is left: every test's fixtures have been torn down by now."""
    leftovers = [*leftover_processes(), *leftover_threads()]
    if leftovers:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("\nleft running by the tests: " + "; ".join(leftovers), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
