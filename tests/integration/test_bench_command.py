"""`modelkit bench` as a process: against a server that misbehaves, and serving a folder itself."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from browser import CHROMIUM, open_page
from misbehaving_server import Script, http_server
from modelkit.cli.app import main

VLLM_PYTHON = os.environ.get("MODELKIT_TEST_VLLM_PYTHON", "")
SMALL = ["--input-tokens", "30", "--output-tokens", "12", "--warm-up", "1"]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(sys.path), "VLLM_CPU_OMP_THREADS_BIND": "0"}


@pytest.fixture(scope="module")
def url():
    with http_server() as address:
        yield address


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs without --output are kept below the working folder."""
    monkeypatch.chdir(tmp_path)


def bench(*arguments):
    command = [sys.executable, "-m", "modelkit", "bench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=250, check=False
    )


def load(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_running_server_is_measured(url, tmp_path):
    done = bench(
        url,
        *SMALL,
        "--concurrency",
        "1,3",
        "--repeats",
        "2",
        "--num-requests",
        "10,12",
        "--output",
        tmp_path / "run",
        "--export",
        "vllm",
    )
    assert done.returncode == 0, done.stderr
    run = load(tmp_path / "run")
    assert [(level["load"], level["repeat"]) for level in run["levels"]] == [
        ("c=1", 0),
        ("c=1", 1),
        ("c=3", 0),
        ("c=3", 1),
    ]
    for level in run["levels"]:
        assert level["metrics"]["n_ok"] == {"c=1": 10, "c=3": 12}[level["load"]]
        assert level["metrics"]["n_short"] == 0
        assert level["metrics"]["output_tokens"]["p50"] == 12
        assert level["metrics"]["prompt_tokens"]["p50"] == 30  # words, calibrated by what the server counts
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[1] for row in rows[1:]] == ["c=1", "c=1", "c=3", "c=3"]
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        *("run.json", "requests.jsonl", "summary.csv", "report.html", "vllm", "charts")
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "run" / "charts").iterdir())
    assert not (tmp_path / ".modelkit").exists()


def test_a_server_that_refuses_extensions_is_asked_without_them(tmp_path):
    with http_server("--strict") as strict_url:
        done = bench(strict_url, *SMALL, "--concurrency", "1", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "takes no ignore_eos" in done.stderr
    (subject,) = load(tmp_path / "run")["subjects"]
    assert (subject["exact_length"], subject["running_usage"]) == (False, False)


def test_a_missed_objective_is_exit_code_1(url, tmp_path):
    arguments = [url, *SMALL, "--concurrency", "1", "--output"]
    missed = bench(*arguments, tmp_path / "missed", "--slo", "ttft_p95=1us", "--slo", "e2e_p99=1m")
    assert missed.returncode == 1
    assert "missed: ttft_p95=0.001ms" in missed.stderr
    assert load(tmp_path / "missed")["levels"][0]["metrics"]["goodput_req_s"] == 0
    met = bench(*arguments, tmp_path / "met", "--slo", "e2e_p99=1m", "--json")
    assert met.returncode == 0
    assert json.loads(met.stdout)["levels"][0]["metrics"]["slo"] == {"e2e_p99=60s": True}


def test_open_loop_and_traces(url, tmp_path):
    done = bench(url, *SMALL, "--request-rate", "50", "--num-requests", "60", "--output", tmp_path / "rate")
    assert done.returncode == 0, done.stderr
    (level,) = load(tmp_path / "rate")["levels"]
    assert (level["mode"], level["load"], level["metrics"]["n_ok"]) == ("open", "rate 50/s", 60)
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": n / 20, "input_length": 5 + n, "output_length": 2 + n} for n in range(10)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench(url, "--trace", trace, "--warm-up", "0", "--output", tmp_path / "trace").returncode == 0
    (level,) = load(tmp_path / "trace")["levels"]
    assert level["metrics"]["n_ok"] == 10
    assert level["metrics"]["output_tokens"]["max"] == 11
    assert level["metrics"]["n_short"] == 0


def test_a_sweep_goes_on_until_it_is_saturated(url, tmp_path):
    done = bench(
        url,
        *SMALL,
        "--concurrency",
        "1,2,...",
        "--duration",
        "1s",
        "--warm-up",
        "0",
        "--output",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    run = load(tmp_path / "run")
    closed = [level["concurrency"] for level in run["levels"] if level["mode"] == "closed"]
    assert closed == [2**power for power in range(len(closed))]
    assert len([level for level in run["levels"] if level["mode"] == "open"]) == 6
    assert run["subjects"][0]["sweep"]["peak_concurrency"] in closed


def test_conversations_images_and_prompts_of_a_file(url, tmp_path):
    done = bench(
        url,
        *SMALL,
        "--concurrency",
        "1",
        "--turns",
        "2",
        "--images",
        "1",
        "--image-size",
        "8x8",
        "--num-requests",
        "3",
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (path for path in (tmp_path / ".modelkit" / "bench").iterdir() if path.is_dir())
    (level,) = load(folder)["levels"]
    assert level["metrics"]["n_ok"] == 6
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": str(Script("from a file", tokens=12))}) + "\n")
    done = bench(
        url,
        "--prompts",
        prompts,
        "--output-tokens",
        "12",
        "--concurrency",
        "1",
        "--num-requests",
        "2",
        "--output",
        tmp_path / "f",
    )
    assert done.returncode == 0, done.stderr
    (level,) = load(tmp_path / "f")["levels"]
    assert level["metrics"]["n_ok"] == 2


def test_a_usage_that_is_wrong_is_noticed(url, tiny_chat_checkpoint, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": str(Script("a liar", tokens=12, usage_factor=20))}) + "\n")
    arguments = [url, "--prompts", prompts, "--tokenizer", tiny_chat_checkpoint, "--output-tokens", "12"]
    done = bench(*arguments, "--concurrency", "1", "--num-requests", "2", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "says that it wrote 240 tokens; by the tokenizer its text has" in done.stderr
    assert load(tmp_path / "run")["levels"][0]["metrics"]["n_short"] == 2


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(url, tmp_path):
    arguments = [
        url,
        "--input-tokens",
        "30",
        "--output-tokens",
        "300",
        "--warm-up",
        "0",
        "--concurrency",
        "1,2,4",
    ]
    command = [sys.executable, "-m", "modelkit", "bench", *arguments, "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT)
    killer = threading.Timer(60, process.kill)
    killer.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("✓") and "c=1:" in line:
            process.send_signal(signal.SIGINT)
    killer.cancel()
    process.stderr.close()
    assert process.wait() == 130, lines
    said = "".join(lines)
    assert "cut off after 1 finished level" in said
    assert f"--output {tmp_path / 'run'} goes on" in said
    before = load(tmp_path / "run")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert "has 1 level already" in done.stderr
    after = load(tmp_path / "run")
    assert [level["load"] for level in after["levels"]] == ["c=1", "c=2", "c=4"]
    assert after["levels"][0] == before["levels"][0]
    assert (after["run_id"], after["started_at"]) == (before["run_id"], before["started_at"])


def test_a_killed_parent_leaves_no_load_behind(url, tmp_path):
    arguments = [
        url,
        "--input-tokens",
        "30",
        "--output-tokens",
        "5000",
        "--warm-up",
        "0",
        "--concurrency",
        "2",
    ]
    command = [sys.executable, "-m", "modelkit", "bench", *arguments, "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT)
    for line in process.stderr:
        if "measuring" in line:
            break
    (worker,) = wait_for(lambda: children(process.pid))
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or is_zombie(worker))


def children(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://127.0.0.1:9"], "cannot reach http://127.0.0.1:9"),
        (["127.0.0.1:9", "--timeout", "2s"], "cannot measure 127.0.0.1:9"),
        (["http://127.0.0.1:9", "--engines", "vllm"], "runs already"),
        (["--engines", "vllm,vllm"], "name each engine once"),
        (["http://127.0.0.1:9", "--concurrency", "0"], "give numbers of callers"),
        (["http://127.0.0.1:9", "--preset", "blog-c10"], "did you mean 'blog-c1"),
        (["http://127.0.0.1:9", "--slo", "ttft=5"], "is no objective"),
        (["http://127.0.0.1:9", "--image-size", "big"], "is no size"),
        (["http://127.0.0.1:9", "--duration", "5"], "is no time"),
        (["http://127.0.0.1:9", "--num-requests", "5,0"], "give numbers of requests"),
        (["http://127.0.0.1:9", "--request-rate", "-1"], "give requests a second"),
        (["--random-weights", "qwen2-7b"], "needs --engines"),
        (["--random-weights", "qwen3", "--engines", "vllm"], "there is no architecture"),
        (["http://127.0.0.1:9", "--api-key-env", "NOWHERE"], "NOWHERE is not set"),
        (["compare", "here", "there"], "cannot read here"),
        (["report", "nowhere"], "cannot read nowhere"),
    ],
)
def test_what_cannot_be_measured_says_why(capsys, arguments, says):
    assert main(["bench", *arguments]) in {1, 2}
    said = capsys.readouterr().err
    assert says in said
    assert "help:" in said
    assert "bug in modelkit" not in said


def test_two_runs_are_compared_and_drawn_on_one_page(url, tmp_path, capsys):
    arguments = [url, *SMALL, "--concurrency", "2", "--repeats", "2"]
    for name in ("a", "b"):
        assert bench(*arguments, "--output", tmp_path / name).returncode == 0
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"tokens/s .*(better|worse|noise)", said)
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert {row["verdict"] for row in json.loads(capsys.readouterr().out)} <= {"better", "worse", "noise"}
    page = tmp_path / "both.html"
    assert main(["bench", "report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]) == 0
    assert page.read_text().count("<svg") >= 5


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
async def test_the_report_shows_every_chart_in_a_browser(url, tmp_path):
    arguments = [*SMALL, "--concurrency", "1,2", "--slo", "ttft_p95=5s", "--request-rate"]
    assert bench(url, *SMALL, "--concurrency", "1,2", "--output", tmp_path / "closed").returncode == 0
    assert (
        bench(url, *arguments, "20,40", "--num-requests", "20", "--output", tmp_path / "open").returncode == 0
    )
    page_path = tmp_path / "report.html"
    assert (
        main(["bench", "report", str(tmp_path / "closed"), str(tmp_path / "open"), "-o", str(page_path)]) == 0
    )
    expected = {
        *("tokens-per-s c=1", "ttft c=1", "decode c=2", "throughput", "pareto", "latency-throughput"),
        *("rate-ttft", "goodput", "ttft-cdf c=1", "itl-cdf c=1", "timeline-inflight", "timeline-tokens"),
    }
    async with open_page(page_path.as_uri(), tmp_path / "profile") as page:
        await page.wait("document.readyState === 'complete' && document.querySelector('svg') !== null")
        drawn = await page.run(
            "Object.fromEntries([...document.querySelectorAll('figure[data-chart]')].map(figure => [figure.dataset.chart, "
            "figure.querySelectorAll('rect, polyline').length * figure.getBoundingClientRect().height]))"
        )
        assert await page.run("document.querySelectorAll('table tr').length") > 8
        assert page.problems == []
    assert expected <= set(drawn)
    assert all(size > 0 for size in drawn.values())


def test_a_folder_is_served_and_measured_over_both_protocols(tiny_chat_checkpoint, tmp_path):
    folder = tiny_chat_checkpoint.parent
    done = bench(folder, *SMALL, "--concurrency", "1,2", "--protocol", "both", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    run = load(tmp_path / "run")
    assert [subject["name"] for subject in run["subjects"]] == ["tiny-chat grpc", "tiny-chat http"]
    for subject in run["subjects"]:
        assert subject["engine"] == "transformers"
        assert subject["running_usage"]
        assert subject["token_check"]["usage_tokens"] == 12
    for level in run["levels"]:
        metrics = level["metrics"]
        assert metrics["counted_by"] == {"usage": 10}
        assert metrics["n_prompt_mismatch"] == metrics["n_short"] == metrics["n_err"] == 0
        assert metrics["prompt_tokens"]["p50"] == 30
        assert level["machine"]["server_cpu_s_per_1k_tokens"] > 0
    assert "most tokens/s" in done.stdout
    latest = folder / ".modelkit" / "bench" / "latest.json"
    assert len(json.loads(latest.read_text())["levels"]) == 4
    latest.unlink()


def test_what_was_measured_goes_with_the_version_that_it_was_measured_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "versions"))
    folder = tmp_path / "parrot"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint/README.md").write_text("No weights at all.\n")
    (folder / "config.yaml").write_text(
        "model: {id: parrot}\nengine: {name: echo}\ncheckpoints: {type: local, path: checkpoint}\n"
    )
    (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass Parrot(LLM):\n    pass\n")
    done = bench(folder, *SMALL, "--concurrency", "1,2", "--set", "engine.max_model_len=512")
    assert done.returncode == 0, done.stderr

    def upload(*options):
        assert main(["upload", str(folder), "--no-image", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    assert upload()["record"] is None
    first = upload("--set", "engine.max_model_len=512")
    assert first["record"]
    (run,) = (path for path in (folder / ".modelkit/bench").iterdir() if path.is_dir())
    assert (first["record"], load(run)["subjects"][0]["engine"]) == (run.name, "echo")
    assert main(["pull", "parrot:v2", "--to", "pulled"]) == 0
    assert not (tmp_path / "pulled/.modelkit/bench" / run.name).exists()
    brought = json.loads((tmp_path / "pulled/.modelkit/bench/latest.json").read_bytes())
    assert (brought["run_id"], len(brought["levels"])) == (run.name, 2)


def echo_folder(path):
    path.mkdir()
    (path / "config.yaml").write_text(f"model: {{id: {path.name}}}\nengine: {{name: echo}}\n")
    (path / "model.py").write_text("from modelkit import LLM\n\n\nclass Echo(LLM):\n    pass\n")
    return path


def test_two_folders_have_a_record_each(tmp_path):
    folders = [echo_folder(tmp_path / name) for name in ("first", "second")]
    done = bench(*folders, *SMALL, "--concurrency", "1")
    assert done.returncode == 0, done.stderr
    for folder in folders:
        told = json.loads((folder / ".modelkit/bench/latest.json").read_bytes())
        assert [each["name"] for each in told["subjects"]] == [folder.name]
        assert [each["subject"] for each in told["levels"]] == [folder.name]
    assert [path.is_dir() for path in (folders[0] / ".modelkit/bench").iterdir()].count(True) == 1


def test_what_a_server_warns_of_as_it_starts_is_shown_once(tmp_path):
    folder = tmp_path / "doubtful"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: {id: doubtful}\nengine: {name: echo}\n")
    (folder / "model.py").write_text(
        "import logging\nfrom modelkit import LLM\n\n\nclass Doubtful(LLM):\n"
        "    async def load(self):\n"
        "        logging.getLogger('engine').warning('it runs on something else')\n"
        "        await super().load()\n"
    )
    done = bench(folder, *SMALL, "--concurrency", "1", "--protocol", "both", "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: doubtful grpc: it runs on something else") == 1
    assert done.stderr.count("it runs on something else") == 1
    for subject in load(tmp_path / "run")["subjects"]:
        assert subject["warnings"] == ["it runs on something else"]
    told = json.loads((folder / ".modelkit/bench/latest.json").read_bytes())
    assert told["subjects"][0]["warnings"] == ["it runs on something else"]


def test_a_folder_that_cannot_be_served_shows_its_log(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: {id: broken}\nengine: {name: echo}\n")
    (folder / "model.py").write_text(
        "from modelkit import LLM\n\n\nclass Broken(LLM):\n    def load(self): raise RuntimeError('out of luck')\n"
    )
    done = bench(folder, *SMALL, "--output", tmp_path / "run")
    assert done.returncode == 1
    assert "the server did not start" in done.stderr
    assert "out of luck" in done.stderr


def random_weights(engine, folder, *arguments):
    done = bench(
        *(
            "--random-weights",
            "tiny",
            "--engines",
            engine,
            *SMALL,
            "--concurrency",
            "1,4",
            "--output",
            folder,
        ),
        *arguments,
    )
    assert done.returncode == 0, done.stderr
    run = load(folder)
    (subject,) = run["subjects"]
    assert (subject["name"], subject["weights"], subject["model"]) == (f"tiny {engine}", "random", "tiny")
    assert "token_check" not in subject
    assert "the server counts wrong" not in done.stderr
    assert [level["metrics"]["n_ok"] for level in run["levels"]] == [10, 12]
    assert [level["metrics"]["n_short"] for level in run["levels"]] == [0, 0]
    return run


def test_an_architecture_is_measured_without_its_weights(tiny_chat_checkpoint, tmp_path):
    del tiny_chat_checkpoint  # which says that torch and transformers are here
    run = random_weights("transformers", tmp_path / "run")
    again = random_weights("transformers", tmp_path / "run")
    assert again == run


@pytest.mark.timeout(300)
@pytest.mark.skipif(not VLLM_PYTHON, reason="MODELKIT_TEST_VLLM_PYTHON names no Python with vLLM")
def test_vllm_makes_its_weights_up_itself(tmp_path):
    options = [f"engine.python={VLLM_PYTHON}", "engine.args.enforce-eager=true", "engine.start_timeout=4m"]
    sets = [part for option in options for part in ("--set", option)]
    run = random_weights("vllm", tmp_path / "run", *sets)
    assert run["subjects"][0]["engine_args"]["args"]["load-format"] == "dummy"
    assert run["levels"][1]["metrics"]["counted_by"] == {"usage": 12}
