"""The serving process: `python -m serving.app` runs Ray Serve with the collector and the recommender until SIGTERM."""

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from headrace import logs, names
from headrace.ops.ports import PortHeldError, check_free
from headrace.ops.processes import holder
from headrace.settings import Settings
from serving import ray_runtime

if TYPE_CHECKING:
    from ray.serve import Application

logger = logging.getLogger(__name__)

MAX_ONGOING_REQUESTS: Final = 1_000
READY: Final = "serving is ready at"


def build(settings: Settings) -> dict[str, tuple[str, "Application"]]:
    """The two Serve applications as `{name: (route prefix, application)}`. Their clients are opened in the replicas.

    Imports Ray Serve: `ray_runtime.environment` must be set before.
    """
    from ray import serve

    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0.1},
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "graceful_shutdown_timeout_s": 2.0,
        "graceful_shutdown_wait_loop_s": 0.05,
        "logging_config": ray_runtime.LOGGING,
    }

    # The classes live in this function, so that a replica gets them by value and imports only its own application:
    # the collector must never import torch.
    @serve.deployment(name=names.COLLECTOR_APP, **options)
    @serve.ingress()
    class Collector:
        def __init__(self, settings: Settings) -> None:
            self._settings = settings

        def __serve_build_asgi_app__(self) -> Any:
            logs.configure(self._settings.log_format, self._settings.log_dir / f"{names.COLLECTOR_APP}.log")
            from serving.collector import build_collector

            return build_collector(self._settings)

    @serve.deployment(name=names.RECOMMENDER_APP, num_replicas=settings.recommender_replicas, **options)
    @serve.ingress()
    class Recommender:
        def __init__(self, settings: Settings) -> None:
            self._settings = settings

        def __serve_build_asgi_app__(self) -> Any:
            logs.configure(self._settings.log_format, self._settings.log_dir / f"{names.RECOMMENDER_APP}.log")
            from serving.entry import open_in_server
            from serving.recommender import build_recommender

            app = build_recommender(self._settings)
            open_in_server(app.state.ways)
            ray_runtime.settle_down()
            return app

    collector: Any = Collector
    recommender: Any = Recommender
    return {
        names.COLLECTOR_APP: (names.EVENTS_PATH, collector.bind(settings)),
        names.RECOMMENDER_APP: ("/", recommender.bind(settings)),
    }


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code."""
    settings = absolute(Settings())
    logs.configure(settings.log_format)
    try:
        check_free({"HEADRACE_HTTP_PORT": settings.http_port})
    except PortHeldError as error:
        print(error, file=sys.stderr)
        return 1
    haproxy = ray_runtime.has_haproxy()
    if not haproxy:
        logger.warning("no HAProxy binary here: Ray Serve's own proxy answers, some 8 ms slower a request")
    for kind in ("event", "read", "admin"):
        if not getattr(settings, f"{kind}_keys"):
            logger.warning("HEADRACE_%s_KEYS is empty: every request that needs one is refused", kind.upper())
    folder = ray_runtime.runtime_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(ray_runtime.environment(folder, haproxy=haproxy))
    for name in ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"):
        os.environ.pop(name, None)  # Feast sets them for whatever its process starts; we count in files of our own
    if holder(settings.run_dir) is None:  # else the stack did, and a part started again goes on counting
        shutil.rmtree(settings.metrics_dir, ignore_errors=True)

    asked_to_end = threading.Event()
    on_signal(break_off)
    try:
        ray_runtime.start_ray(settings)
        on_signal(break_off)  # again: Ray has put its own handlers in place
        ray_runtime.deploy(settings, build(settings))
        on_signal(asked_to_end.set)
        logger.info("%s http://%s:%d", READY, settings.http_host, settings.http_port)
        asked_to_end.wait()
    except KeyboardInterrupt:
        logger.info("asked to end before everything had started")
    finally:
        on_signal(lambda: None)  # the end is under way; asking again must not cut it short
        ray_runtime.stop()
    shutil.rmtree(folder, ignore_errors=True)  # logs stay only where something went wrong
    return 0


def absolute(settings: Settings) -> Settings:
    """Replicas start in folders of their own, so paths must not depend on where this process did."""
    return settings.model_copy(
        update={"data": settings.data.resolve(), "feature_repo": settings.feature_repo.resolve()}
    )


def on_signal(act: Callable[[], None]) -> None:
    """What SIGTERM and SIGINT do from now on."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        act()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def break_off() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
