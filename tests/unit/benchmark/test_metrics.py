"""The definitions, on records written by hand: every number below can be checked with a pencil."""

import math

import pytest

from modelkit.benchmark.metrics import ClientFigures, Window, failures, latencies, measure
from modelkit.benchmark.objectives import parse_objective
from modelkit.benchmark.record import BY_USAGE, OK, Record, read_records, spread_tokens, write_records
from modelkit.benchmark.statistics import Distribution, nearest_rank, wilson_interval
from modelkit.errors import UsageError

MS = 1_000_000


def record(index=0, sent_ms=0, times_ms=(100, 110, 120, 150), tokens=(1, 1, 1, 1), **changes):
    times_ns = [round((sent_ms + at) * MS) for at in times_ms]
    values = {
        "index": index,
        "asked_tokens": sum(tokens),
        "scheduled_ns": sent_ms * MS,
        "sent_ns": sent_ms * MS or 1,
        "ended_ns": times_ns[-1],
        "times_ns": times_ns,
        "tokens": list(tokens),
        "status": OK,
        "prompt_tokens": 7,
        "output_tokens": sum(tokens),
        "counted_by": BY_USAGE,
    }
    return Record(**(values | changes))


def measured(*records, mode="closed", window=None, concurrency=1, **options):
    return measure(
        records, mode=mode, window=window or Window(0, 150 * MS), concurrency=concurrency, **options
    )


def test_one_request():
    metrics = measured(record(sent_ms=1000), window=Window(1000 * MS, 1150 * MS))
    assert metrics["ttft_ms"]["p50"] == 100
    assert metrics["tpot_ms"]["p50"] == pytest.approx(50 / 3, abs=1e-3)
    assert metrics["itl_ms"] == {
        "n": 3,
        "mean": 16.6667,
        "p50": 10,
        "p90": 30,
        "p95": 30,
        "p99": 30,
        "max": 30,
    }
    assert metrics["e2e_s"]["p50"] == 0.15
    assert metrics["req_tok_s_decode"]["p50"] == 60
    assert metrics["req_tok_s_e2e"]["p50"] == pytest.approx(4 / 0.15, abs=1e-3)
    assert metrics["llmperf_itl_ms"]["p50"] == 37.5
    assert metrics["out_tok_s_steady"] == metrics["out_tok_s_whole"] == pytest.approx(4 / 0.15, abs=1e-2)
    assert metrics["in_tok_s"] == pytest.approx(7 / 0.15, abs=1e-2)
    assert metrics["inflight_mean"] == 1
    assert metrics["notes"] == metrics["verdict"] == []


def test_a_gap_is_spread_over_the_tokens_it_brought():
    metrics = measured(record(times_ms=(100, 180), tokens=(2, 8)))
    assert metrics["itl_ms"]["n"] == 8
    assert metrics["itl_ms"]["max"] == 10
    assert metrics["chunk_gap_ms"]["max"] == 80
    assert metrics["tokens_per_msg"]["mean"] == 5
    assert metrics["notes"] == ["tokens come in lumps of 5.0: ITL and TPOT say little, the chunk gap does"]
    assert metrics["tpot_ms"]["p50"] == 10


def test_a_single_message_has_no_tpot():
    metrics = measured(record(times_ms=(100,), tokens=(4,)))
    assert metrics["tpot_ms"] is None
    assert metrics["itl_ms"] is None
    assert metrics["ttft_ms"]["p50"] == 100


def test_open_loop_counts_from_the_schedule():
    late = record(sent_ms=500, scheduled_ns=100 * MS)
    metrics = measured(late, mode="open")
    assert metrics["ttft_ms"]["p50"] == 100
    assert metrics["ttft_sched_ms"]["p50"] == 500
    assert metrics["e2e_s"]["p50"] == 0.55
    assert latencies(late, "closed").ttft_sched == pytest.approx(0.1)


def test_the_steady_window_takes_tokens_of_every_request():
    ramp = record(0, sent_ms=0, times_ms=(10, 20, 90), tokens=(1, 1, 1), is_ramp=True)
    metrics = measured(ramp, record(1, sent_ms=50), window=Window(50 * MS, 160 * MS))
    # The ramp's third, and the three of the other that come after 50 and until 160 ms: at 150, 160.
    assert metrics["out_tok_s_steady"] == pytest.approx((1 + 2) / 0.11, abs=1e-2)
    assert metrics["n_ok"] == 1
    assert metrics["ttft_ms"]["n"] == 1


def test_failures_are_infinite_and_short_answers_left_out():
    failed = record(1, times_ms=(100,), tokens=(1,), status="UNAVAILABLE")
    short = record(2, asked_tokens=9)
    metrics = measured(record(0), failed, short)
    assert (metrics["n_ok"], metrics["n_err"], metrics["n_short"]) == (2, 1, 1)
    assert metrics["errors"] == {"UNAVAILABLE": 1}
    assert metrics["ttft_ms"]["n"] == 2
    assert metrics["ttft_ms"]["p50"] == 100
    assert metrics["ttft_ms"]["max"] is None
    assert metrics["ttft_ms"]["mean"] == 100


def test_what_the_server_said_of_its_failures_is_one_line():
    rare = record(1, status="TIMEOUT", error="no end")
    often = [record(2 + index, status="HTTP_500", error="out of\n  \x1b[31mluck") for index in range(2)]
    metrics = measured(record(0), rare, *often)
    assert list(metrics["errors"]) == ["HTTP_500", "TIMEOUT"]
    assert failures(metrics) == "3 of 4 requests failed: 2 HTTP_500, 1 TIMEOUT (out of \ufffd[31mluck)"


def test_goodput_and_objectives():
    slow = record(1, times_ms=(600, 610), tokens=(1, 1))
    objectives = [parse_objective("ttft_p50=500ms"), parse_objective("itl_p99=50ms")]
    metrics = measured(record(0), slow, objectives=objectives)
    assert metrics["slo_attainment"] == 0.5
    assert metrics["goodput_req_s"] == pytest.approx(1 / 0.61, abs=1e-3)
    low, high = metrics["slo_interval"]
    assert low < 0.5 < high
    assert metrics["slo"] == {"ttft_p50=500ms": True, "itl_p99=50ms": True}
    assert measured(slow, objectives=objectives)["slo"]["ttft_p50=500ms"] is False


def test_a_failed_request_breaks_a_promise_of_the_mean():
    failed = record(1, status="TIMEOUT", times_ms=(1,), tokens=(1,))
    objective = [parse_objective("ttft_mean=10s")]
    assert measured(record(0), objectives=objective)["slo"] == {"ttft_mean=10000ms": True}
    assert measured(record(0), failed, objectives=objective)["slo"] == {"ttft_mean=10000ms": False}


@pytest.mark.parametrize(
    ("client", "concurrency", "says"),
    [
        (ClientFigures(loop_lag_p99_s=0.0005), 1, None),
        (ClientFigures(loop_lag_p99_s=0.005), 1, "lags 5.0 ms at p99, 50% of the ITL's median"),
        (ClientFigures(cpu_share=0.9), 1, "used 90% of a core"),
        (ClientFigures(), 2, "1.0 of 2 requests were in flight"),
    ],
)
def test_the_client_says_when_it_was_the_bottleneck(client, concurrency, says):
    reasons = measured(record(), client=client, concurrency=concurrency)["verdict"]
    assert (says is None and not reasons) or (len(reasons) == 1 and says in reasons[0])


# A read of everything at once, and messages that were read one after the other when all had come.
@pytest.mark.parametrize("times_ms", [(97,), (97, 97.01, 97.02, 97.03)])
def test_the_lag_is_held_against_the_first_token_where_nothing_else_took_time(times_ms):
    lump = record(times_ms=times_ms, tokens=(4,) if len(times_ms) == 1 else (1, 1, 1, 1))
    window = Window(0, 97 * MS)
    metrics = measured(lump, window=window, client=ClientFigures(loop_lag_p99_s=0.087))
    assert metrics["verdict"] == ["client-limited: its loop lags 87.0 ms at p99, 90% of the TTFT's median"]
    assert metrics["req_tok_s_decode"] is None
    assert measured(lump, window=window)["verdict"] == []


def test_a_rate_that_nothing_decodes_at_is_told_as_lumps():
    metrics = measured(record(times_ms=(97, 97.01, 97.02, 97.03)))
    assert metrics["notes"] == [
        "messages came in lumps, or the client was late to read them: ITL and TPOT say little"
    ]


def test_nearest_rank():
    values = [15, 20, 35, 40, 50]  # https://en.wikipedia.org/wiki/Percentile#The_nearest-rank_method
    assert [nearest_rank(values, percent) for percent in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    found = Distribution.of(values)
    assert (found.p50, found.p90, found.p99, found.max) == (35, 50, 50, 50)


def test_weights_count_as_often_as_they_say():
    assert Distribution.of([1, 2], [99, 1]) == Distribution.of([1] * 99 + [2])
    assert Distribution.of([]) is None
    assert Distribution.of([5], [0]) is None


def test_infinity_is_null_in_json_and_counts_in_percentiles():
    found = Distribution.of([1.0, math.inf])
    assert found.as_json() == {
        "n": 2,
        "mean": 1.0,
        "p50": 1.0,
        "p90": None,
        "p95": None,
        "p99": None,
        "max": None,
    }


def test_the_wilson_interval():
    # https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval: 10 of 10 is not 100% for sure.
    low, high = wilson_interval(10, 10)
    assert (round(low, 4), round(high, 9)) == (0.7225, 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (4, [1, 1, 1, 1], [1, 1, 1, 1]),
        (12, [1, 1, 1], [4, 4, 4]),
        (5, [1, 1], [2, 3]),
        (2, [1, 1, 1], [1, 0, 1]),
        (1, [1, 1, 1, 1], [1, 0, 0, 0]),
        (3, [0, 0], [3, 0]),
        (3, [0, 1], [0, 3]),
    ],
)
def test_tokens_are_spread_whole(total, weights, parts):
    spread = spread_tokens(total, weights)
    assert sum(spread) == total
    assert spread == parts


def test_a_record_survives_its_file(tmp_path):
    original = record(3, sent_ms=5, tokens=(1, 2, 3, 4), error="x", headers_ns=6 * MS)
    same = record(4, sent_ms=7)
    path = tmp_path / "requests.jsonl"
    write_records(path, "a", [original])
    write_records(path, "b", [same])
    assert list(read_records(path)) == [("a", original), ("b", same)]
    path.write_text("nonsense\n")
    with pytest.raises(UsageError, match="line 1, is no request"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft", "is no objective"),
        ("tfft_p95=5ms", "did you mean 'ttft'"),
        ("ttft_p42=5ms", "there is no statistic 'p42'"),
        ("ttft_p95=5parsec", "there is no unit"),
        ("ttft_p95=1.2.3s", "is no number"),
    ],
)
def test_objectives_say_what_is_wrong(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_objective(text)
    assert caught.value.cure


def test_objectives_read_units():
    assert parse_objective("E2E_p90 = 2m").limit_s == 120
    assert str(parse_objective("itl_p99=0.05s")) == "itl_p99=50ms"
