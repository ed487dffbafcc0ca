"""The service in the foreground: the HTTP frontend, the rewards and the workers, on a private Ray cluster.

Everything started here ends with this process: in good order on SIGTERM or Ctrl-C, and also when it is killed
(Ray's processes notice that their parent is gone). On an existing cluster (see `cluster.py`) what a killed one leaves
stays, and the next one uses it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.cluster import joined_ray, start_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from ray.serve import Application

    from service.settings import Settings

__all__ = ["check_stores", "free_port", "private_ray", "run_service", "start_frontend", "wait_until_ready"]

READY_S = 120.0
"""How long the frontend may take to answer; it takes seconds on an idle machine."""
CONNECT_S = 15.0
"""How long a cluster may take to answer."""
DRAIN_S, DRAIN_SLACK_S, SHUTDOWN_S = 12.0, 6.0, 10.0
"""What workers get to checkpoint and give back their jobs, what asking them may take beyond that, and what Ray gets
to end its processes: together less than the 30 s in which everything is promised to have ended."""
STAND_BY_S = 2.0
OBJECT_STORE_BYTES = 128 * 2**20
"""Ray's shared memory: only pictures on their way to a reward and back lie in it, some MiB at a time."""
FOLDER_PREFIX = "dreamserve-"


class _Stop:
    """Whether this process was told to end. A second signal ends the waiting for a good order."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def listen(self) -> None:
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()


def run_service(settings: Settings, host: str, port: int, address: str | None = None) -> int:
    """Run the service until a signal says otherwise; the exit status.

    It runs on a Ray of its own, or on the cluster at `address`; that goes on when the service ends. `port` 0 takes a
    free one. Prints one JSON line with the URL on stdout when /readyz answers. Raises as `joined_ray` does.
    """
    port = free_port(host, port)
    stop = _Stop()
    stop.listen()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    _say(f"Starting: {settings.workers} worker(s), data in {settings.data_dir} …")
    connected = private_ray() if address is None else joined_ray(address, CONNECT_S)
    with connected, contextlib.ExitStack() as ending:
        stop.listen()  # Ray has put its own handlers in place
        if stop.event.is_set():
            return 0
        if address is None:
            scaler, is_ours = _start_everything(settings, host, port), True
        else:
            scaler, is_ours = start_service(settings, host, port, ending)
        if is_ours:
            ending.callback(_drain, scaler)
        else:
            _say("A pool runs on this cluster already: it is used, and stays when this ends.")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        trouble = wait_until_ready(url, stop.event)
        if stop.event.is_set():
            return 0
        if trouble is not None:
            _say(f"Error: not ready after {READY_S:.0f} s: {trouble} Look into {settings.data_dir}/logs.")
            return 1
        if settings.auth == "on":
            _say_how_to_call(settings)
        print(json.dumps({"url": url}), flush=True)
        _say(
            f"Ready at {url} (documentation at {url}/docs). Ctrl-C ends it; unfinished jobs go on next time."
        )
        _stand_by(scaler, stop.event, settings)
        _say("Ending: jobs under way are saved …")
    return 0


def check_stores(settings: Settings) -> None:
    """Raise `UnusableDatabase` for one of another release, `UnfitStore` for objects that are written twice.

    One that does not answer is told of, and may still come up. Raises ValueError for a URL of neither kind.
    """
    from service.jobs.database import Database
    from service.jobs.errors import StoreUnavailable, UnusableDatabase
    from service.jobs.objects import open_checked_store

    open_checked_store(settings.objects_url)
    database = Database(settings.database_url)
    try:
        with database.reading():
            pass
    except UnusableDatabase:
        raise
    except StoreUnavailable as error:
        _say(f"Warning: {error}")
    finally:
        database.close()


def _say_how_to_call(settings: Settings) -> None:
    """Say that callers need a key, and how to make the first one."""
    from service.jobs.database import Database
    from service.jobs.keys import KeyStore

    database = Database(settings.database_url)
    if KeyStore(database).is_empty():
        _say(
            "Callers need an API key, and there is none yet. Make one: "
            f"dreamserve keys create --name NAME --data-dir {settings.data_dir}"
        )
    else:
        _say("Callers need an API key: Authorization: Bearer ds_…, or DREAMSERVE_API_KEY for this client.")
    database.close()


def _stand_by(scaler: Any, stop: threading.Event, settings: Settings) -> None:
    """Wait for the end, and say so if workers keep dying: jobs would wait in silence."""
    import ray
    from ray.exceptions import ActorUnavailableError

    told = False
    while not stop.wait(STAND_BY_S):
        with contextlib.suppress(ActorUnavailableError):  # it died, and Ray is restarting it
            if not told and ray.get(scaler.is_troubled.remote()):
                log_file = settings.data_dir / "logs" / "workers.log"
                _say(f"Workers keep dying: {_trouble(settings)}. See {log_file}. Trying new ones.")
                told = True


def _trouble(settings: Settings) -> str:
    """Read what workers have told of themselves."""
    from service.jobs.errors import StoreUnavailable
    from service.jobs.store import JobStore

    store = JobStore(settings.database_url)
    try:
        return "; ".join(one.detail for one in store.troubles()) or "they did not say why"
    except StoreUnavailable as error:
        return str(error)
    finally:
        store.close()


def _start_everything(settings: Settings, host: str, port: int) -> Any:
    """Start frontend, rewards and pool on the connected cluster; the pool scaler's handle.

    The frontend first: it takes jobs while workers load, which would only slow its start on a small machine.
    """
    from workers.pool import start_pool

    start_frontend(settings, host, port)
    return start_pool(settings)


def start_frontend(settings: Settings, host: str, port: int, application: Application | None = None) -> None:
    """Start a Serve application on the connected cluster, ours if none is given; returns when it has been deployed."""
    from ray import serve

    from service.http.app import build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    serve.run(application or build_app(settings), route_prefix="/")


@contextlib.contextmanager
def private_ray() -> Iterator[None]:
    """Connect to a Ray cluster of our own, reachable from this machine and with a secret only."""
    # Read by Ray when it is imported, and inherited by all its processes.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Of 5 s by default, after which Serve kills the proxy: on a busy machine it still imports then.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    # Despite its name: without it Ray's node is at the machine's address, and its servers listen everywhere.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    folder = _session_folder()
    try:
        for last in (False, False, True):
            try:
                ray.init(
                    address="local",  # never join a cluster that happens to run here
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    num_cpus=4,
                    num_gpus=0,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(folder),
                )
                break
            except RuntimeError as error:
                # Ray picks free ports and binds them a moment later: now and then somebody was faster.
                if last or "Failed to bind" not in str(error):
                    raise
                ray.shutdown()
        yield
    finally:
        # Whatever hangs: when this process is gone, the kernel and Ray end the rest.
        watchdog = threading.Timer(SHUTDOWN_S, os._exit, [1])
        watchdog.daemon = True
        watchdog.start()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        watchdog.cancel()


def _session_folder() -> Path:
    """Make a folder for Ray's sockets and logs, and remove those of services that were killed.

    Its path must be short: a Unix socket's has 107 characters at most.
    """
    base = Path("/tmp")  # noqa: S108 - mkdtemp makes a folder that is ours alone
    base = base if base.is_dir() else Path(tempfile.gettempdir())
    for left in base.glob(f"{FOLDER_PREFIX}*"):
        pid = left.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=base))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _drain(scaler: Any) -> None:
    import ray
    from ray.exceptions import ActorUnavailableError

    deadline = time.monotonic() + DRAIN_S + DRAIN_SLACK_S
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                ray.get(scaler.drain.remote(min(DRAIN_S, left_s)), timeout=left_s)
                return
            except ActorUnavailableError:  # Ray is restarting it
                time.sleep(0.5)
    except (Exception, KeyboardInterrupt) as error:
        _say(
            f"Not all workers could save their jobs ({type(error).__name__}); they resume from older checkpoints."
        )


def wait_until_ready(url: str, stop: threading.Event) -> str | None:
    """Wait for /readyz, at most `READY_S`, and until `stop`; what was the matter at the end, None when it is ready."""
    deadline = time.monotonic() + READY_S
    trouble: str | None = "no answer."
    while time.monotonic() < deadline and not stop.is_set():
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310 - our own http:// URL
                return None
        except urllib.error.HTTPError as error:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # of a proxy, say
                trouble = str(json.load(error)["detail"])
        except OSError:
            pass
        stop.wait(0.1)
    return trouble


def free_port(host: str, port: int) -> int:
    """Check that a port can be had, or choose one; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
