"""Heavy libraries are loaded in the room that needs them, and not before: counted in fresh interpreters."""

import json
import resource
import subprocess
import sys
import tomllib

import pytest

from modelkit.cli.app import VERBS
from paths import ROOT

HEAVY = {
    "docker",
    "google",
    "grpc",
    "huggingface_hub",
    "httpx",
    "kubernetes",
    "numpy",
    "PIL",
    "ray",
    "torch",
    "transformers",
}
REPORT = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded_by(code: str) -> set[str]:
    """Run code in a fresh interpreter; return the top-level packages that are loaded at its end."""
    command = [sys.executable, "-c", f"{code}\n{REPORT}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


def cpu_seconds(code: str) -> float:
    """Return the least processor time of three runs: elapsed time would measure the neighbours too."""
    runs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        runs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(runs)


def run_cli(*arguments: str) -> str:
    return (
        f"import sys; sys.argv = ['modelkit', *{arguments!r}]\n"
        "from modelkit.cli.app import main\n"
        "try: sys.exit(main())\n"
        "except SystemExit as end: assert not end.code, end.code\n"
    )


def test_importing_modelkit_loads_nothing_else():
    third_party = loaded_by("import modelkit") - loaded_by("pass") - set(sys.stdlib_module_names)
    assert third_party == {"modelkit"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-h"]])
def test_help_loads_nothing_heavy(arguments):
    assert loaded_by(run_cli(*arguments)) & (HEAVY | {"pydantic", "rich", "yaml"}) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_loads_no_engine(verb):
    assert loaded_by(run_cli(verb, "--help")) & (HEAVY - {"google", "grpc"}) == set()


def test_the_client_loads_no_engine_and_no_server():
    loaded = loaded_by("from modelkit import AsyncClient, Client")
    assert loaded & (HEAVY - {"google", "grpc"} | {"pydantic", "uvloop", "yaml"}) == set()


def test_deploying_to_a_ray_cluster_needs_no_ray():
    assert "ray" not in loaded_by(
        "import modelkit.deploy.ray_serve.deployer, modelkit.deploy.ray_serve.local"
    )


def test_rays_proxies_load_the_contract_and_little_else():
    loaded = loaded_by("import modelkit.inference.contract")
    assert loaded & (HEAVY - {"google", "grpc"} | {"aiohttp", "pydantic", "yaml"}) == set()


def test_a_model_can_be_written_without_heavy_libraries():
    assert loaded_by("from modelkit import LLM, Field, Image, Model, Tensor, method") & HEAVY == set()


def test_the_client_costs_little_more_than_the_grpc_that_it_needs():
    nothing = cpu_seconds("pass")
    grpc = cpu_seconds("import grpc, grpc.aio; from google.protobuf import struct_pb2") - nothing
    assert cpu_seconds("from modelkit import Client") - nothing < 2.5 * grpc  # 1.8 when this was written


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from importlib.metadata import EntryPoint
sys.exit(EntryPoint("modelkit", sys.argv[1], "console_scripts").load()())
"""


def test_a_ctrl_c_while_the_command_is_imported_is_quiet():
    command = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["modelkit"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")
