"""What Prometheus reads from a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("mft_requests", "HTTP requests", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("mft_prompt_tokens", "Tokens of prompts", registry=registry)
        self.generated_tokens = Counter("mft_generated_tokens", "Tokens generated", registry=registry)
        self.finished = Counter("mft_texts", "Texts by the reason for which they ended", ["reason"], registry=registry)
        self.running = Gauge("mft_running", "Texts that are being generated", registry=registry)
        self.waiting = Gauge("mft_waiting", "Texts that wait for a place", registry=registry)
        self.first_token = Histogram(
            "mft_first_text_seconds", "Time to the first text of a stream", buckets=SECONDS, registry=registry
        )
        self.seconds = Histogram("mft_text_seconds", "Time to the end of a text", buckets=SECONDS, registry=registry)
