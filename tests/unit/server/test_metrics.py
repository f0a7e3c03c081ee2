import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelkit.errors import OverloadedError
from modelkit.model import Request
from modelkit.server.metrics import CallMetrics, render


def read(metrics, gauges=None):
    """Return {(sample name, values of its labels by their names): value}."""
    text = render(metrics, gauges or {}, {"model_id": "m"}).decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_call_counts_with_its_tokens():
    metrics = CallMetrics(["predict"])
    request = Request(method="predict")
    with metrics.call(request):
        request.usage.prompt_tokens, request.usage.output_tokens, request.usage.cached_tokens = 5, 3, 2
    found = read(metrics)
    assert found["modelkit_calls_total", "OK", "predict"] == 1
    assert found["modelkit_prompt_tokens_total", "predict"] == 5
    assert found["modelkit_output_tokens_total", "predict"] == 3
    assert found["modelkit_cached_tokens_total", "predict"] == 2
    assert found["modelkit_call_duration_seconds_count", "predict"] == 1
    assert found["modelkit_info", "m"] == 1


@pytest.mark.parametrize(
    ("error", "deadline", "code"),
    [
        (OverloadedError("busy"), None, "RESOURCE_EXHAUSTED"),
        (asyncio.CancelledError(), None, "CANCELLED"),
        (GeneratorExit(), time.monotonic() + 3600, "CANCELLED"),
        (asyncio.CancelledError(), 0.0, "DEADLINE_EXCEEDED"),
        (RuntimeError("?"), None, "INTERNAL"),
    ],
)
def test_a_failed_call_counts_by_its_code(error, deadline, code):
    metrics = CallMetrics(["predict"])
    with pytest.raises(type(error)), metrics.call(Request(method="predict", deadline=deadline)):
        raise error
    assert read(metrics)["modelkit_calls_total", code, "predict"] == 1


def test_streams_have_a_time_to_the_first_item_and_gaps_between_the_others():
    metrics = CallMetrics(["generate"])
    with metrics.call(Request(method="generate")) as timer:
        for _ in range(4):
            time.sleep(0.002)
            timer.item()
    found = read(metrics)
    assert found["modelkit_time_to_first_item_seconds_count", "generate"] == 1
    assert found["modelkit_inter_item_seconds_count", "generate"] == 3
    assert found["modelkit_inter_item_seconds_bucket", "0.001", "generate"] == 0
    assert 0.006 <= found["modelkit_inter_item_seconds_sum", "generate"] < 1


def test_names_that_callers_make_up_make_no_new_series():
    metrics = CallMetrics(["predict"])
    for number in range(100):
        with metrics.call(Request(method=f"guess{number}")):
            pass
    assert read(metrics)["modelkit_calls_total", "OK", "(unknown)"] == 100
    assert len(render(metrics, {}, {})) < 6000


def test_gauges_are_read_when_asked_for():
    values = iter([1.0, 2.0])
    gauges = {"modelkit_calls_running": ("Calls in progress.", lambda: next(values))}
    metrics = CallMetrics([])
    assert [read(metrics, gauges)["modelkit_calls_running",] for _ in range(2)] == [1.0, 2.0]


def test_counting_is_cheap():
    metrics = CallMetrics(["generate"])
    with metrics.call(Request(method="generate")) as timer:
        started = time.perf_counter()
        for _ in range(10_000):
            timer.item()
        took_us = (time.perf_counter() - started) * 100
    assert took_us < 10  # 0.3 on an idle core
