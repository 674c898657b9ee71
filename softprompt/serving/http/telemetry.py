"""What a server counts for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from softprompt.serving import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
GAUGES = {
    "num_waiting": ("softprompt_waiting", "Inputs in the queue"),
    "num_running": ("softprompt_running", "Inputs in the running batch"),
    "num_rows": ("softprompt_batch_rows", "Rows of the running batch"),
    "values_bytes": ("softprompt_prompt_bytes", "Bytes of the prompts in memory"),
    "states_bytes": ("softprompt_prompt_states_bytes", "Bytes of the prompts' keys and values in memory"),
    "cache_bytes": ("softprompt_cache_bytes", "Bytes of the running batch's key-value cache"),
    "promised_bytes": ("softprompt_promised_bytes", "Bytes that the running batch's key-value cache may grow to"),
    "max_memory": (
        "softprompt_max_memory_bytes",
        "Bytes that prompts, their keys and values, and the running batch may take together",
    ),
}
COUNTERS = {
    "num_steps": ("softprompt_decoding_steps", "Decoding steps of the batch"),
    "num_prompts_run": ("softprompt_prompts_run", "Prompts run because their keys and values were not in memory"),
    "num_states_reused": ("softprompt_prompt_states_reused", "Inputs that found their prompt's keys and values there"),
    "num_prompts_loaded": ("softprompt_prompts_loaded", "Prompts read from disk again"),
    "num_cancelled": ("softprompt_cancelled", "Inputs given up by their clients"),
    "num_deadlines": ("softprompt_deadlines", "Inputs given up at their deadline"),
}


class Telemetry:
    """Counters and histograms of one server; `stats` is asked at each scrape."""

    def __init__(self, stats: Callable[[], Stats]):
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "softprompt_requests", "Requests by endpoint, prompt and status", ["endpoint", "prompt", "status"], **own
        )
        self.input_tokens = Counter(
            "softprompt_input_tokens", "Tokens read: of inputs and of labels, not of prompts", ["prompt"], **own
        )
        self.output_tokens = Counter("softprompt_output_tokens", "Tokens generated", ["prompt"], **own)
        self.seconds = Histogram(
            "softprompt_request_seconds",
            "Seconds from arrival to answer",
            ["endpoint", "prompt"],
            buckets=SECONDS,
            **own,
        )
        self.queue_seconds = Histogram(
            "softprompt_queue_seconds", "Seconds an input waited", ["prompt"], buckets=SECONDS, **own
        )
        self._registry.register(_Engine(stats))
        ProcessCollector(registry=self._registry)  # what the process holds, beside what the engine accounts for

    def scrape(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)


class _Engine:
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, stats: Callable[[], Stats]):
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client asks it of collectors."""
        now = self._stats()
        for field, (name, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(now, field))
        for field, (name, text) in COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(now, field))
