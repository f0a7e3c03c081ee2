"""What the time of a start goes into, by the stages that are heard."""

import json
import re
import signal
import subprocess
import sys

import pytest

from modelkit.cli import start_profile
from modelkit.cli.start_profile import FINDING_CHECKPOINT, LOADING_MODEL, StartProfile
from modelkit.engines.lmdeploy import LmdeployEngine
from modelkit.engines.sglang import SglangEngine
from modelkit.engines.tgi import TgiEngine
from modelkit.engines.vllm import VllmEngine


def profile_of(*stages):
    """A profile of stages that took so many seconds, after a second of imports."""
    now = [0.0]
    profile = StartProfile(lambda: now[0])
    now[0] = 1.0
    for stage, took_s in stages:
        profile.begin(stage)
        now[0] += took_s
    profile.end()
    now[0] += 100
    return profile


VLLM = (
    (FINDING_CHECKPOINT, 0.5),
    (LOADING_MODEL, 0.0),
    ("importing", 8.0),
    ("starting the engine", 2.0),
    ("loading weights", 4.0),
    ("compiling", 20.0),
    ("capturing CUDA graphs", 10.0),
    ("answering a first request", 3.0),
)


def test_stages_are_summed_into_phases():
    profile = profile_of(*VLLM)
    assert profile.phases() == {"import": 11.0, "resolve": 0.5, "load": 4.0, "compile": 30.0, "warm-up": 3.0}
    content = profile.content()
    assert content["total_s"] == sum(profile.phases().values()) == 48.5
    assert content["warm_up_s"] == 3.0
    assert content["stages"][0] == {"stage": "importing model.py", "took_s": 1.0}


def test_the_table_reads_like_this():
    assert profile_of(*VLLM).table().splitlines() == [
        "  start     seconds  share",
        "  import      11.00   23%  importing model.py 1.00, importing 8.00, starting the engine 2.00",
        "  resolve      0.50    1%",
        "  load         4.00    8%  loading the model 0.00, loading weights 4.00",
        "  compile     30.00   62%  compiling 20.00, capturing CUDA graphs 10.00",
        "  warm-up      3.00    6%",
        "  total       48.50",
    ]


def test_what_makes_an_environment_is_a_phase_of_its_own():
    profile = profile_of(("making an environment for vllm 0.26.0, once", 60.0), ("checking", 2.0))
    assert profile.phases()["prepare"] == 62.0


@pytest.mark.parametrize("engine", [VllmEngine, SglangEngine, LmdeployEngine, TgiEngine])
def test_every_stage_of_every_engine_has_a_phase(engine):
    assert {stage.name for stage in engine.stages} <= start_profile._PHASE_OF.keys()


def test_a_real_start_prints_it(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {id: greeter}\n")
    (tmp_path / "model.py").write_text(
        "import time\nfrom modelkit import Model, method\ntime.sleep(0.3)\nclass A(Model):\n"
        "    def load(self):\n        self.report_progress('loading weights')\n        time.sleep(0.2)\n"
        "    @method\n    def f(self) -> int: ...\n"
    )
    command = [
        sys.executable,
        "-m",
        "modelkit",
        "serve",
        str(tmp_path),
        "--port",
        "0",
        "--profile-start",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        start = json.loads(process.stdout.readline())["start"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert start["import_s"] >= 0.3
    assert start["load_s"] >= 0.2
    assert re.search(r"^  load +\d+\.\d\d +\d+%", errors, re.MULTILINE), errors
