"""From the records of one level to its metrics. Pure: the same records give the same numbers, on any machine.

The definitions, for a request that is sent at t_send (scheduled at t_sched, in open loop) and whose message i arrives at
t_i with n_i tokens, N in all; t_1 is the first message with a token and t_last the last:

    TTFT        t_1 - t_send; in open loop from t_sched, so that a queue in the client counts too
    TPOT        (t_last - t_1) / (N - n_1)
    ITL         each gap t_i - t_(i-1), spread over the n_i tokens it brought: a percentile over tokens
    chunk gap   the same gaps, unspread: what a reader of the stream waits
    E2E         t_end - t_send; in open loop from t_sched
    decode      1 / TPOT, tokens/s of one request;  e2e: N / E2E
    steady      tokens that arrive inside the window / its length. The window begins when every slot is in its first
                counted request and ends when the first slot finds nothing left to do; in open loop it is the time in
                which requests were scheduled
    whole run   all tokens / (last end - first send), the definition of `vllm bench serve`
    goodput     requests/s that meet the limit of every objective

A failed request is +inf in TTFT, TPOT and E2E. A short one (another length than was asked for) is in none of them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from modelkit.benchmark.objectives import Objective
from modelkit.benchmark.record import Record
from modelkit.benchmark.statistics import Distribution, nearest_rank, wilson_interval

__all__ = ["ClientFigures", "Mode", "Window", "failed_share", "failures", "has_failed", "measure", "verdict"]

Mode = Literal["closed", "burst", "open"]

NS = 1e-9
MAX_LAG_SHARE = 0.10
MAX_CLIENT_CPU = 0.70
MIN_IN_FLIGHT = 0.95
MAX_LUMP = 4.0
MAX_FAILED_SHARE = 0.01
# Nothing decodes one request faster. What seems to was read in lumps: of a server that collects, or by a client that lags.
MAX_DECODE_TOK_S = 10_000.0


@dataclass(frozen=True, slots=True)
class Window:
    """The steady part of a level, in nanoseconds of CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int

    @property
    def length_s(self) -> float:
        """How long it is; 0 where there is none."""
        return max(0, self.end_ns - self.start_ns) * NS


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """What the client itself was doing meanwhile; the busiest of its processes."""

    loop_lag_p99_s: float = 0.0
    cpu_share: float = 0.0
    num_bytes: int = 0
    num_processes: int = 1


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latencies of one request in seconds; `itl` as (gap per token, tokens)."""

    ttft: float = math.inf
    ttft_sched: float = math.inf
    tpot: float | None = math.inf
    e2e: float = math.inf
    itl: list[tuple[float, int]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def meets(self, objective: Objective) -> bool:
        """Whether the request is within the limit; its own percentile counts for the gaps between its tokens."""
        if objective.metric == "itl":
            gaps = Distribution.of((gap for gap, _ in self.itl), (tokens for _, tokens in self.itl))
            return gaps is None or gaps.at(objective.statistic) <= objective.limit_s
        value = self.ttft_sched if objective.metric == "ttft" else getattr(self, objective.metric)
        return value is None or value <= objective.limit_s


def latencies(record: Record, mode: Mode) -> Latencies:
    """Return the latencies of one request; +inf where it failed."""
    if not record.is_ok:
        return Latencies()
    begun_ns = record.scheduled_ns if mode == "open" else record.sent_ns
    first, last = record.times_ns[0], record.times_ns[-1]
    rest = record.output_tokens - record.tokens[0]
    gaps = [(after - before) * NS for before, after in pairwise(record.times_ns)]
    return Latencies(
        ttft=(first - record.sent_ns) * NS,
        ttft_sched=(first - begun_ns) * NS,
        tpot=(last - first) * NS / rest if rest > 0 else None,
        e2e=(record.ended_ns - begun_ns) * NS,
        itl=[(gap / number, number) for gap, number in zip(gaps, record.tokens[1:], strict=True)],
        gaps=gaps,
    )


def measure(
    records: Sequence[Record],
    *,
    mode: Mode,
    window: Window,
    concurrency: int | None,
    objectives: Sequence[Objective] = (),
    client: ClientFigures = ClientFigures(),
) -> dict[str, Any]:
    """Return the metrics of a level as run.json has them; times in the unit of their name, null where there is none."""
    counted = [record for record in records if not record.is_ramp]
    failed = [record for record in counted if not record.is_ok]
    good = [record for record in counted if record.is_ok and not record.is_short]
    measured = [(record, latencies(record, mode)) for record in (*good, *failed)]
    found = [each for _, each in measured]
    span_s = _span_s(records)
    itl = [pair for each in found for pair in each.itl]
    tokens_per_message = [float(number) for record in good for number in record.tokens]
    decode = Distribution.of(1 / each.tpot for each in found if each.tpot and math.isfinite(each.tpot))
    if decode is not None and decode.p50 > MAX_DECODE_TOK_S:
        decode = None
    result: dict[str, Any] = {
        "n_ok": len(counted) - len(failed),
        "n_err": len(failed),
        "n_short": sum(record.is_short for record in counted),
        "errors": dict(Counter(record.status for record in failed).most_common()),
        "error": _said(failed),
        "duration_s": round(span_s, 4),
        "window_s": round(window.length_s, 4),
        "inflight_mean": _rounded(_in_flight(records, window), 3),
        "ttft_ms": _json(Distribution.of(each.ttft for each in found), 1e3),
        "ttft_sched_ms": _json(Distribution.of(each.ttft_sched for each in found), 1e3),
        "tpot_ms": _json(Distribution.of(each.tpot for each in found if each.tpot is not None), 1e3),
        "itl_ms": _json(Distribution.of((gap for gap, _ in itl), (number for _, number in itl)), 1e3),
        "chunk_gap_ms": _json(Distribution.of(gap for each in found for gap in each.gaps), 1e3),
        "tokens_per_msg": _json(Distribution.of(tokens_per_message), 1),
        "e2e_s": _json(Distribution.of(each.e2e for each in found), 1),
        "req_tok_s_decode": _json(decode, 1),
        "req_tok_s_e2e": _json(
            Distribution.of(
                record.output_tokens / each.e2e for record, each in measured if record.is_ok and each.e2e
            ),
            1,
        ),
        "llmperf_itl_ms": _json(
            Distribution.of(each.e2e / record.output_tokens for record, each in measured if record.is_ok), 1e3
        ),
        "out_tok_s_steady": _rounded(_steady(records, window), 3),
        "out_tok_s_whole": _rounded(_rate(sum(record.output_tokens for record in records), span_s), 3),
        "in_tok_s": _rounded(_rate(sum(record.prompt_tokens for record in records), span_s), 3),
        "req_s": _rounded(_rate(len(counted) - len(failed), span_s), 4),
        "prompt_tokens": _json(Distribution.of(float(record.prompt_tokens) for record in good), 1),
        "output_tokens": _json(Distribution.of(float(record.output_tokens) for record in good), 1),
        "cached_tokens": sum(record.cached_tokens for record in counted),
        "n_prompt_mismatch": sum(
            record.is_ok and 0 < record.expected_prompt_tokens != record.prompt_tokens for record in counted
        ),
        "counted_by": dict(Counter(record.counted_by for record in good)),
        "client_cpu_pct": round(client.cpu_share * 100, 1),
        "client_processes": client.num_processes,
        "client_bytes": client.num_bytes,
        "loop_lag_ms_p99": round(client.loop_lag_p99_s * 1e3, 3),
    }
    result |= _goodput(measured, objectives, span_s)
    result["notes"] = _notes(result)
    result["verdict"] = verdict(result, client, concurrency if mode != "open" else None)
    return result


def _goodput(
    measured: Sequence[tuple[Record, Latencies]], objectives: Sequence[Objective], span_s: float
) -> dict[str, Any]:
    """Return goodput, attainment with its interval, and which objectives the level as a whole has met."""
    if not objectives:
        return {"goodput_req_s": None, "slo_attainment": None, "slo_interval": None, "slo": {}}
    met = sum(
        record.is_ok and all(each.meets(objective) for objective in objectives) for record, each in measured
    )
    found = [each for _, each in measured]
    return {
        "goodput_req_s": _rounded(_rate(met, span_s), 4),
        "slo_attainment": _rounded(met / len(measured) if measured else 0.0, 4),
        "slo_interval": [round(edge, 4) for edge in wilson_interval(met, len(measured))],
        "slo": {str(objective): _is_met(found, objective) for objective in objectives},
    }


def _is_met(found: Sequence[Latencies], objective: Objective) -> bool:
    if objective.metric == "itl":
        pairs = [pair for each in found for pair in each.itl]
        values = Distribution.of((gap for gap, _ in pairs), (number for _, number in pairs))
        return values is not None and values.at(objective.statistic) <= objective.limit_s
    name = "ttft_sched" if objective.metric == "ttft" else objective.metric
    given = (getattr(each, name) for each in found)
    values = Distribution.of(value for value in given if value is not None)
    if values is None:
        return False
    # The mean leaves failed requests out; a promise does not.
    return values.at(objective.statistic) <= objective.limit_s and (
        objective.statistic != "mean" or math.isfinite(values.max)
    )


def _notes(metrics: dict[str, Any]) -> list[str]:
    """Return what makes some of the figures mean less than they seem to."""
    lumps, itl = metrics["tokens_per_msg"], metrics["itl_ms"]
    if itl and not _is_gap(itl["p50"]):
        return ["messages came in lumps, or the client was late to read them: ITL and TPOT say little"]
    if lumps and lumps["mean"] > MAX_LUMP:
        return [f"tokens come in lumps of {lumps['mean']:.1f}: ITL and TPOT say little, the chunk gap does"]
    return []


def _is_gap(itl_ms: float) -> bool:
    """Whether a server can have taken so long for a token, rather than have sent it along with the one before."""
    return itl_ms >= 1e3 / MAX_DECODE_TOK_S


def verdict(metrics: dict[str, Any], client: ClientFigures, concurrency: int | None) -> list[str]:
    """Return why the client, and not the server, may have set these numbers; nothing where it did not."""
    reasons = []
    itl, ttft = metrics["itl_ms"], metrics["ttft_ms"]
    lag_ms = client.loop_lag_p99_s * 1e3
    # An answer that comes in one lump has no gap that the lag could be held against.
    name, values = ("ITL", itl) if itl and _is_gap(itl["p50"]) else ("TTFT", ttft)
    if values and values["p50"] and lag_ms > MAX_LAG_SHARE * values["p50"]:
        share = lag_ms / values["p50"]
        reasons.append(
            f"client-limited: its loop lags {lag_ms:.1f} ms at p99, {share:.0%} of the {name}'s median"
        )
    if client.cpu_share > MAX_CLIENT_CPU:
        reasons.append(f"client-limited: it used {client.cpu_share:.0%} of a core")
    in_flight = metrics["inflight_mean"]
    if concurrency and in_flight is not None and in_flight < MIN_IN_FLIGHT * concurrency:
        reasons.append(f"client-limited: {in_flight:.1f} of {concurrency} requests were in flight on average")
    return reasons


def _said(failed: Sequence[Record]) -> str:
    """Return a text of the failure that is most frequent, as one line that any terminal may show."""
    texts = Counter(" ".join(record.error.split()) for record in failed if record.error).most_common(1)
    return "".join(char if char.isprintable() else "\ufffd" for text, _ in texts for char in text)


def has_failed(metrics: Mapping[str, Any]) -> bool:
    """Whether more of a level's requests failed than its figures can bear: those that failed were no load."""
    return failed_share(metrics) > MAX_FAILED_SHARE


def failed_share(metrics: Mapping[str, Any]) -> float:
    """Return the share of a level's requests that failed; all, where none came to its end."""
    num = metrics["n_ok"] + metrics["n_err"]
    return float(metrics["n_err"] / num) if num else 1.0


def failures(metrics: Mapping[str, Any]) -> str:
    """Say how many requests of a level failed, with which status, and what the server said of one of them."""
    if not metrics["n_err"]:
        return "no request came to its end"
    statuses = ", ".join(f"{number} {status}" for status, number in metrics["errors"].items())
    said = f" ({metrics['error']})" if metrics.get("error") else ""
    return f"{metrics['n_err']} of {metrics['n_ok'] + metrics['n_err']} requests failed: {statuses}{said}"


def _in_flight(records: Iterable[Record], window: Window) -> float | None:
    """Return the mean number of requests in flight during the window (the sum of their times in it, over its length)."""
    if not window.length_s:
        return None
    inside = sum(
        max(0, min(record.ended_ns, window.end_ns) - max(record.sent_ns, window.start_ns))
        for record in records
    )
    return inside * NS / window.length_s


def _steady(records: Iterable[Record], window: Window) -> float | None:
    """Return the output tokens/s in the window, from whatever request."""
    if not window.length_s:
        return None
    tokens = sum(
        number
        for record in records
        for at, number in zip(record.times_ns, record.tokens, strict=True)
        if window.start_ns < at <= window.end_ns
    )
    return tokens / window.length_s


def _span_s(records: Sequence[Record]) -> float:
    sent = [record.sent_ns for record in records if record.sent_ns]
    return (max(record.ended_ns for record in records) - min(sent)) * NS if sent else 0.0


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds else None


def _json(values: Distribution | None, scale: float) -> dict[str, Any] | None:
    return values.as_json(scale) if values is not None else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def lag_p99(lags_s: Sequence[float]) -> float:
    """Return the 99th percentile of what the event loop was late; 0 where it was not looked at."""
    return nearest_rank(lags_s, 99) if lags_s else 0.0
