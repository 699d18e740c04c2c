"""The floor under the recommend benchmark: the same Serve mode and the same request model, and 20 items that never change.

`python -m benchmarks.recommend_noop` serves `POST /v1/recommend` until SIGTERM, at HEADRACE_HTTP_PORT, with one replica and no keys.
"""

import os
import shutil
import threading
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import FastAPI
from starlette.responses import Response

from headrace.settings import Settings
from serving import ray_runtime
from serving.app import MAX_ONGOING_REQUESTS, absolute, on_signal

if TYPE_CHECKING:
    from ray.serve import Application

READY: Final = "the no-op is ready"
_ANSWER: Final = {
    "request_id": "0b0f3c1e-5f0e-4c3e-9d0a-0f5a3f3f8a11",
    "items": [
        {"item_id": f"item-{place:05d}", "score": 0.987654321 - place / 32, "source": "two_tower", "position": place}
        for place in range(20)
    ],
    "model_version": "20260101T000000-000000-default",
    "features_age_ms": 41.7,
    "as_of": "2026-01-31T12:00:00.250000+00:00",
    "degraded": [],
    "explored": False,
    "took_ms": 0.0,
}


def build_noop() -> FastAPI:
    """What answers: the body is checked against the recommender's model, the answer encoded anew each time."""
    from serving.api import RecommendIn

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/recommend")
    async def post_recommend(asked: RecommendIn) -> Response:
        return Response(orjson.dumps(_ANSWER), media_type="application/json")

    return app


def build() -> "dict[str, tuple[str, Application]]":
    """As `serving.app.build` does. Imports Ray Serve: `ray_runtime.environment` must be set before."""
    from ray import serve

    @serve.deployment(
        name="noop", num_replicas=1, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=MAX_ONGOING_REQUESTS
    )
    @serve.ingress()
    class Noop:
        def __serve_build_asgi_app__(self) -> Any:
            from benchmarks.recommend_noop import build_noop

            return build_noop()

    noop: Any = Noop
    return {"noop": ("/", noop.bind())}


def main() -> None:
    settings = absolute(Settings())
    folder = ray_runtime.runtime_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(ray_runtime.environment(folder, haproxy=ray_runtime.has_haproxy()))
    asked_to_end = threading.Event()
    try:
        ray_runtime.start_ray(settings)
        ray_runtime.deploy(settings, build())
        on_signal(asked_to_end.set)
        print(READY, flush=True)
        asked_to_end.wait()
    finally:
        on_signal(lambda: None)  # the end is under way
        ray_runtime.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
