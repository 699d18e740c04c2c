"""Twelve-factor settings: every value comes from the environment (`HEADRACE_*`) or has a safe default. Documented in docs/settings.md."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MICROS = 1_000_000  # compiled into kernels
HOUR_US, DAY_US = 3_600 * MICROS, 86_400 * MICROS


class Settings(BaseSettings):
    """Read once by each process's composition root, then passed in; nothing else reads the environment."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore", frozen=True)

    data: Path = Field(Path("var"), description="The one directory that holds all run-time data.")
    feature_repo: Path = Field(Path("feature_repo"), description="The Feast repository.")
    redis_url: str | None = Field(
        None, description="Redis or Valkey to use; empty: the embedded Valkey of `headrace up`."
    )
    redis_cluster: bool = Field(
        False, description="The URL is a node of a Redis or Valkey cluster: the others are found through it."
    )
    log_partitions: int = Field(4, ge=1, le=1024, description="Partitions of the event log; fixed once the log exists.")
    shards: int = Field(4, ge=1, le=4096, description="Shards of the online state; fixed once state exists.")
    kafka_bootstrap: str = Field(
        "", description="Kafka brokers, `host:port,...`: the event log is Kafka's; empty: Redis Streams."
    )
    kafka_topic: str = Field("headrace-events", description="Topic of the event log; it must have as many partitions.")
    kafka_config: str = Field(
        "", repr=False, description="More settings of librdkafka as a JSON object: SASL, TLS, timeouts."
    )
    flow_workers: int = Field(1, ge=1, le=256, description="Feature flow processes that `headrace up` starts.")
    flow_linger_ms: float = Field(
        10,
        ge=0,
        le=10_000,
        description="Shortest time between two micro-batches of the feature flow, unless it is behind.",
    )
    flow_max_batch_events: int = Field(
        20_000, ge=1, le=1_000_000, description="Events at which a micro-batch of the feature flow ends."
    )
    flow_lease_s: float = Field(
        3, ge=0.2, le=600, description="Time after which the shards of a worker that is gone go to the others."
    )
    recommender_replicas: int = Field(
        1, ge=1, le=256, description="Processes that answer recommendations, behind one address."
    )
    log_format: Literal["json", "text"] = Field(
        "json", description="Lines of serving's logs: `json` objects, or `text` for reading by eye."
    )
    event_keys: str = Field("", description="Comma-separated keys that may POST events.")
    read_keys: str = Field("", description="Comma-separated keys that may read: recommend and metrics.")
    admin_keys: str = Field("", description="Comma-separated keys that may change the catalogue: POST items.")
    http_host: str = Field("127.0.0.1", description="Address that HTTP listens on.")
    http_port: int = Field(8000, ge=1, le=65535, description="Port of the public HTTP API.")
    valkey_port: int = Field(
        0, ge=0, le=65535, description="Port of the embedded Valkey; 0: a free one, kept in the data directory."
    )
    clock_ahead_s: float = Field(
        300, gt=0, description="A timestamp at most this far ahead of arrival is set to arrival; further is refused."
    )
    dedup_horizon_s: float = Field(
        86_400, gt=0, description="Append time within which a repeated event_id is a duplicate."
    )
    lateness_horizon_s: float = Field(86_400, gt=0, description="Events later than this stay out of session features.")
    log_max_bytes: int = Field(
        2 * 1024**3, gt=0, description="Bound on the event log's size; the API answers 503 above it."
    )
    disk_reserve_bytes: int = Field(
        256 * 1024**2, ge=0, description="Kept free on the embedded log's disk; the API answers 503 below it."
    )
    max_event_bytes: int = Field(64 * 1024, gt=0, description="Largest single event accepted.")
    max_body_bytes: int = Field(4 * 1024**2, gt=0, description="Largest request body accepted.")
    max_batch_events: int = Field(1_000, gt=0, description="Most events in one request.")
    deadline_ms: float = Field(100, gt=0, description="Default time budget of a recommendation.")
    model_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Of `HEADRACE_DEADLINE_MS`, what the models of a request may take at p99: `headrace promote` measures it.",
    )
    overload: Literal["shed", "fallback"] = Field(
        "shed",
        description="A request that would be late: `shed` with 429, or answered by the order of popularity (`fallback`).",
    )
    feature_age_bound_s: float = Field(30, gt=0, description="Features older than this count as unavailable.")

    exploration: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of slates whose order is drawn, to learn from; `headrace up` takes 0.05 where it is not set.",
    )
    exploration_temperature: float = Field(
        0.05,
        ge=0.01,
        le=100,
        description="Of the drawing: an item worth 1.1 times as much is 1.1^(1/temperature) times as likely.",
    )

    @property
    def lake_dir(self) -> Path:
        return self.data / "lake"

    @property
    def run_dir(self) -> Path:
        """Process records, the embedded server's address, generated keys."""
        return self.data / "run"

    @property
    def log_dir(self) -> Path:
        """What each process wrote about itself."""
        return self.data / "log"

    @property
    def metrics_dir(self) -> Path:
        """Where the replicas of serving count together; emptied when the stack starts."""
        return self.run_dir / "metrics"

    @property
    def registry_path(self) -> Path:
        """Feast's file registry."""
        return self.data / "registry.pb"

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.data.resolve() / 'mlflow.db'}"

    @property
    def bundles_dir(self) -> Path:
        return self.data / "bundles"

    @property
    def reports_dir(self) -> Path:
        """HTML reports of trainings and evaluations."""
        return self.data / "reports"

    @property
    def runs_dir(self) -> Path:
        """Training runs that did not end."""
        return self.data / "runs"
