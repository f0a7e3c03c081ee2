"""What is made of finished levels: files, comparison, sweep, roofline, the machine's figures."""

import asyncio
import csv
import json
import os

import pytest

from misbehaving_server import http_server
from modelkit.benchmark.compare import compare_runs, comparison_lines, winners
from modelkit.benchmark.latest import write_latest
from modelkit.benchmark.lengths import Lengths
from modelkit.benchmark.machine import Machine, Sampler, read_engine_metrics
from modelkit.benchmark.metrics import Window, measure
from modelkit.benchmark.objectives import parse_objective
from modelkit.benchmark.record import OK, Record
from modelkit.benchmark.report import write_report
from modelkit.benchmark.results import (
    REQUESTS,
    RUN,
    SUMMARY,
    Store,
    as_vllm,
    load_records,
    load_run,
    summary_rows,
)
from modelkit.benchmark.roofline import find_gpu, read_architecture, roofline
from modelkit.benchmark.runner import Settings, Subject, run_subject
from modelkit.benchmark.sweep import is_saturated, summarize
from modelkit.benchmark.targets import TargetSpec
from modelkit.benchmark.tokens import WordTexts
from modelkit.benchmark.workload import Workload
from modelkit.config import BENCH_RECORD
from modelkit.errors import UsageError

HEADER = {
    "schema_version": 1,
    "run_id": "r1",
    "started_at": "2026-01-01T00:00:00+00:00",
    "tool": {"name": "modelkit bench", "version": "0"},
    "command": [],
    "git": None,
    "host": {"gpus": [], "cpu": "x", "num_cpus": 1, "system": "s"},
    "settings": {
        "workload": {"seed": 0, "input_tokens": "5", "output_tokens": "9", "kind": "synthetic"},
        "slo": [],
    },
    "definitions": "",
}


def record(speed, index=0):
    """An answer of nine tokens, `speed` ms each, the first after ten of those."""
    step = round(speed * 1e6)
    times = [1 + step * (10 + number) for number in range(9)]
    return Record(
        index,
        9,
        1,
        sent_ns=1,
        ended_ns=times[-1],
        times_ns=times,
        tokens=[1] * 9,
        status=OK,
        prompt_tokens=5,
        output_tokens=9,
    )


def level(subject="a", concurrency=1, speed=10.0, repeat=0, mode="closed", rate=None, slo=()):
    records = [record(speed, index) for index in range(2)]
    metrics = measure(
        records,
        mode=mode,
        window=Window(1, records[0].ended_ns),
        concurrency=concurrency,
        objectives=[parse_objective(text) for text in slo],
    )
    # What so many callers would get.
    for name in ("out_tok_s_steady", "req_s"):
        metrics[name] *= concurrency or 1
    load = f"rate {rate}/s" if mode == "open" else f"c={concurrency}"
    return {
        "id": f"{subject}/{load}/{repeat}",
        "subject": subject,
        "mode": mode,
        "concurrency": concurrency if mode != "open" else None,
        "rate": rate,
        "repeat": repeat,
        "load": load,
        "started_at": "2026-01-01T00:00:00+00:00",
        "ended_at": "2026-01-01T00:00:01+00:00",
        "input_tokens": "5",
        "output_tokens": "9",
        "metrics": metrics,
        "machine": {},
        "roofline": None,
    }, records


def make_run(folder, *levels):
    store = Store.open(folder, HEADER)
    for name in dict.fromkeys(one["subject"] for one, _ in levels):
        store.set_subject({"name": name, "engine": name, "protocol": "grpc", "model": "m"})
    for one, records in levels:
        store.add(one, records)
    return store


def test_a_run_survives_its_folder(tmp_path):
    store = make_run(tmp_path, level(), level(concurrency=2))
    assert load_run(tmp_path) == load_run(tmp_path / RUN) == store.run
    assert {name: len(found) for name, found in load_records(tmp_path).items()} == {
        "a/c=1/0": 2,
        "a/c=2/0": 2,
    }
    rows = list(csv.DictReader((tmp_path / SUMMARY).read_text().splitlines()))
    assert [row["concurrency"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == list(summary_rows(store.run)[0])
    assert float(rows[0]["ttft_ms_p50"]) == 100


def test_a_cut_run_goes_on_and_forgets_the_level_that_was_cut(tmp_path):
    make_run(tmp_path, level())
    with (tmp_path / REQUESTS).open("ab") as file:
        file.write(json.dumps(record(5).as_json("a/c=2/0")).encode() + b'\n{"level": "a/c=2')
    store = Store.open(tmp_path, HEADER | {"run_id": "r2"})
    assert store.run["run_id"] == "r1"
    assert store.level("a/c=1/0") is not None
    assert store.level("a/c=2/0") is None
    assert list(load_records(tmp_path)) == ["a/c=1/0"]


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    make_run(tmp_path, level())
    before = (tmp_path / RUN).read_bytes()
    with pytest.raises(UsageError, match="holds a run with other settings"):
        Store.open(tmp_path, HEADER | {"settings": {}})
    assert (tmp_path / RUN).read_bytes() == before


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot read"), ("{", "is no run"), ("{}", "is no run"), ("[]", "is no run")]
)
def test_a_folder_without_a_run_says_so(tmp_path, content, says):
    if content is not None:
        (tmp_path / RUN).write_text(content)
    with pytest.raises(UsageError, match=says) as caught:
        load_run(tmp_path)
    assert caught.value.cure


def test_a_run_of_another_release_is_refused(tmp_path):
    store = make_run(tmp_path, level())
    store.run["schema_version"] = 99
    store.write()
    with pytest.raises(UsageError, match="schema 99"):
        load_run(tmp_path)


def test_a_folder_with_other_files_becomes_no_run(tmp_path):
    (tmp_path / REQUESTS).write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        Store.open(tmp_path, HEADER)
    assert (tmp_path / REQUESTS).read_text() == "mine"


def test_a_run_that_was_cut_before_it_began_goes_on(tmp_path):
    make_run(tmp_path)
    (tmp_path / RUN).unlink()
    assert Store.open(tmp_path, HEADER).run["levels"] == []


def repeats(subject, *speeds):
    return [level(subject, speed=speed, repeat=number) for number, speed in enumerate(speeds)]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((10.0, 10.1, 9.9), (8.0, 8.1, 7.9), "better"),
        ((10.0, 10.1, 9.9), (12.0, 12.1, 11.9), "worse"),
        ((10.0, 11.0, 9.0), (10.1, 11.2, 9.1), "noise"),
        ((10.0,), (8.0,), "unknown"),
        ((10.0, 10.0), (8.0, 8.0), "better"),
        ((10.0, 10.0), (8.0, 8.0 + 1e-9, 8.0), "better"),
        ((10.0, 10.0), (8.0, 8.1, 7.9), "better"),
    ],
)
def test_better_worse_or_noise(tmp_path, first, second, verdict):
    a = make_run(tmp_path / "a", *repeats("one", *first)).run
    b = make_run(tmp_path / "b", *repeats("two", *second)).run
    rows = {row["metric"]: row for row in compare_runs(a, b)}
    assert {row["verdict"] for row in rows.values()} == {verdict}
    ttft = rows["TTFT p50 ms"]
    assert ttft["a"] == pytest.approx(10 * sum(first) / len(first), rel=1e-3)
    if verdict != "unknown":
        assert ttft["change_low"] - 1e-9 <= ttft["change"] <= ttft["change_high"] + 1e-9
    lines = list(comparison_lines(list(rows.values())))
    assert lines[0].startswith("one, c=1")
    assert all(verdict in line for line in lines[1:])


def test_runs_that_cannot_be_compared(tmp_path):
    a = make_run(tmp_path / "a", level("x")).run
    b = make_run(tmp_path / "b", level("x", concurrency=2)).run
    with pytest.raises(UsageError, match="no level in common"):
        compare_runs(a, b)
    other = {**a, "settings": {"workload": {"seed": 1}}}
    with pytest.raises(UsageError, match="workloads differ"):
        compare_runs(a, other)


def test_winners_are_named_by_load(tmp_path):
    run = make_run(
        tmp_path, level("slow", speed=20), level("fast", speed=10), level("fast", concurrency=2)
    ).run
    assert list(winners(run)) == [
        "c=1: most tokens/s fast (100.0, +100% over slow); soonest first token fast (100.0 ms)"
    ]


def sweep(*speeds, slo=()):
    """Levels of 1, 2, 4, ... callers with the ms of a token at each."""
    return [level(concurrency=2**power, speed=speed, slo=slo)[0] for power, speed in enumerate(speeds)]


def test_a_sweep_ends_when_doubling_gains_nothing():
    assert not is_saturated([])
    assert not is_saturated(sweep(10))
    assert not is_saturated(sweep(10, 11))
    assert is_saturated(sweep(10, 11, 21.5))


def test_a_sweep_ends_when_the_objectives_break():
    assert is_saturated(sweep(10, 11, slo=["ttft_p50=105ms"]))


def test_a_sweep_knows_its_peak_and_knee():
    levels = sweep(10, 11, 14, 27)
    opened = [
        level(mode="open", rate=rate, speed=speed, slo=["ttft_p95=200ms"])[0]
        for rate, speed in ((5, 12), (9, 30))
    ]
    found = summarize([*levels, *opened])
    assert found["peak_concurrency"] == 8
    assert found["knee_concurrency"] == 4
    assert found["max_rate_within_slo"] == 5
    assert found["max_goodput_req_s"] > 0


QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


@pytest.mark.parametrize(("callers", "decode", "with_prefill"), [(1, 300, 299), (100, 13_540, 11_002)])
def test_the_roofline_of_a_7b_model_on_an_h200(callers, decode, with_prefill):
    model, gpu = read_architecture(QWEN2_7B), find_gpu("NVIDIA H200")
    assert model.kv_bytes_per_token == 57_344
    best = roofline(model, gpu, concurrency=callers, input_tokens=2048, output_tokens=2048)
    assert best.decode_tok_s == pytest.approx(decode, rel=0.002)
    assert best.with_prefill_tok_s == pytest.approx(with_prefill, rel=0.002)
    assert best.prefill_s == pytest.approx(0.0349, rel=0.002)


def test_what_has_no_roofline():
    assert find_gpu("Voodoo 2") is None
    assert read_architecture({"model_type": "mamba"}) is None
    assert read_architecture(QWEN2_7B | {"num_experts": 8}) is None


def test_engine_metrics_are_read_by_their_names_in_each_engine():
    vllm = b"""# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
other 1
"""
    assert read_engine_metrics(vllm) == {"running": 7, "waiting": 2, "kv_use": 0.5}
    assert read_engine_metrics(b"sglang:num_queue_reqs 5\nsglang:token_usage 0.1\n") == {
        "waiting": 5,
        "kv_use": 0.1,
    }
    assert read_engine_metrics(b"") == {}


def test_the_machine_tells_peaks_means_and_cpu_by_token():
    sample = {"memory_bytes": 5e9, "utilization_pct": 50.0, "power_w": 300.0}
    machine = Machine(
        [sample, sample | {"memory_bytes": 7e9}], [{"running": 1.0}, {"running": 3.0}], 2.0, 4.0
    )
    told = machine.as_json(1000)
    assert told["gpu"]["memory_bytes_max"] == 7e9
    assert told["engine"]["running"] == {"mean": 2.0, "max": 3.0}
    assert (told["server_cpu_s_per_1k_tokens"], told["engine_cpu_s_per_1k_tokens"]) == (2.0, 4.0)
    assert Machine().as_json(0) == {}


async def test_the_engines_metrics_are_found_where_they_are():
    with http_server() as url:
        sampler = Sampler(metrics_urls=[f"{url}/metrics/engine", f"{url}/metrics"], server_pid=os.getpid())
        async with sampler.sampling() as machine:
            while not machine.engine:
                await asyncio.sleep(0.05)
    assert machine.engine[0] == {"running": 3.0, "waiting": 2.0}
    assert machine.server_cpu_s >= 0


async def test_only_the_gpus_that_the_server_may_use_are_sampled(tmp_path, monkeypatch):
    rows = "0, GPU-a, 1000, 90, 700\n1, GPU-b, 10, 20, 100\n2, GPU-c, 30, 40, 200\n"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nwhile :; do printf '{rows}'; sleep 0.05; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    async with Sampler().sampling() as machine:
        while len(machine.gpu) < 2:
            await asyncio.sleep(0.02)
    told = machine.as_json(1)["gpu"]
    assert told["memory_bytes_max"] == 40 * 1024**2
    assert (told["utilization_pct_mean"], told["power_w_mean"]) == (30.0, 300.0)


def test_the_record_beside_the_model(tmp_path):
    run = make_run(tmp_path / "run", level()).run
    write_latest(tmp_path, run, {"a"})
    told = json.loads((tmp_path / BENCH_RECORD).read_text())
    assert told["levels"][0]["output_tok_s"] == pytest.approx(run["levels"][0]["metrics"]["out_tok_s_steady"])
    assert told["gpu_memory_bytes_max"] is None


def test_each_folder_of_a_run_has_a_record_of_its_own(tmp_path):
    run = make_run(tmp_path / "run", level("a"), level("a", concurrency=2), level("b")).run
    for names in ({"a"}, {"b"}, {"c"}):
        write_latest(tmp_path, run, names)
        told = json.loads((tmp_path / BENCH_RECORD).read_text())
        expected = names if names != {"c"} else {"b"}  # of which nothing was measured
        assert {each["name"] for each in told["subjects"]} == expected
        assert {each["subject"] for each in told["levels"]} == expected


def test_a_run_that_goes_on_with_a_changed_folder_is_of_neither_content(tmp_path):
    store = make_run(tmp_path, level())
    subject = store.run["subjects"][0]
    subject["content_digest"] = "sha256:a"
    store.set_subject({"name": "a", "sweep": {}})
    store.set_subject({"name": "a", "content_digest": "sha256:a"})
    assert subject["content_digest"] == "sha256:a"
    store.set_subject({"name": "a", "content_digest": "sha256:b"})
    assert subject["content_digest"] is None
    store.run["levels"].clear()
    store.set_subject({"name": "a", "content_digest": "sha256:b"})
    assert subject["content_digest"] == "sha256:b"


def test_a_run_that_goes_on_keeps_what_the_server_warned_of_before(tmp_path):
    store = make_run(tmp_path, level())
    for warnings in (["slow <kernels>"], [], ["slow <kernels>", "no cache"]):
        store.set_subject({"name": "a", "warnings": warnings})
    store.set_subject({"name": "a", "sweep": {}})
    assert load_run(tmp_path)["subjects"][0]["warnings"] == ["slow <kernels>", "no cache"]
    page = write_report([tmp_path], tmp_path / "report.html").page.read_text()
    assert page.count("slow &lt;kernels&gt;") == 1


def test_vllms_names(tmp_path):
    run = make_run(tmp_path, level()).run
    told = as_vllm(run, run["levels"][0])
    assert told["completed"] == 2
    assert told["total_output_tokens"] == 18
    assert told["total_input_tokens"] == 10
    assert told["median_ttft_ms"] == 100
    assert told["mean_tpot_ms"] == told["p99_itl_ms"] == 10
    assert told["median_e2el_ms"] == pytest.approx(180)


# ------------------------------------------------------------------------------------------- usage and the tokenizer


class FiveTimesAsMany(WordTexts):
    """A tokenizer that finds five tokens in each word of the server's answers."""

    def count(self, text):
        return 5 * len(text.split())


class Warnings:
    """A watcher that hears warnings only."""

    def __init__(self):
        self.warnings = []

    def stage(self, text):
        pass

    begin = counters = end = lambda *_: None

    def warn(self, text, cure=""):
        self.warnings.append((text, cure))


async def measured(folder, weights):
    """Measure a server that tells a token a word, and return the subject's entry and the warnings."""
    workload = Workload(input_tokens=Lengths("fixed", 5), output_tokens=Lengths("fixed", 8))
    settings = Settings(workload=workload, concurrency=(1,), num_requests=(2,), warm_up_rounds=2)
    store, watcher = Store.open(folder, HEADER), Warnings()
    with http_server() as url:
        subject = Subject(
            "a", TargetSpec(protocol="http", address=url), FiveTimesAsMany(), Sampler(), {"weights": weights}
        )
        await run_subject(subject, settings, store, watcher)
    run = load_run(folder)
    assert run["started_at"] < run["levels"][0]["started_at"] <= run["levels"][0]["ended_at"]
    (found,) = run["subjects"]
    return found, watcher.warnings


async def test_usage_that_the_tokenizer_denies_is_a_warning(tmp_path):
    found, warnings = await measured(tmp_path, "checkpoint")
    told = found["token_check"]["usage_tokens"]
    assert found["token_check"] == {"usage_tokens": told, "tokenizer_tokens": 5 * told}
    ((text, cure),) = warnings
    assert f"says that it wrote {told} tokens; by the tokenizer its text has {5 * told}" in text
    assert "do not trust" in cure


async def test_the_text_of_random_weights_proves_nothing_of_usage(tmp_path):
    found, warnings = await measured(tmp_path, "random")
    assert warnings == []
    assert "token_check" not in found
