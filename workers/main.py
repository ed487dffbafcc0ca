"""The console script: the client's commands of `service.cli`, and those that run things. The composition root.

What is heavy is imported inside the commands, so that `dreamserve --help` is instant and needs no torch.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import app
from service.client import DEFAULT_URL
from service.fsck_commands import fsck
from service.keys_commands import keys_app
from service.terminal import usage
from workers.doctor import check_gpu, doctor
from workers.reward_commands import reward_app
from workers.weights_commands import weights_app

if TYPE_CHECKING:
    from service.jobs.troubles import Source
    from service.settings import Settings

__all__ = ["authenticating", "check_gpus", "main"]

DEFAULT_PORT = int(DEFAULT_URL.rpartition(":")[2])
MAX_DEFAULT_THREADS = 2
"""Threads of a worker beyond which the small networks of the embedded default gain nothing."""

DataDir = Annotated[Path | None, typer.Option(help="Folder of the database, objects and logs.")]

app.add_typer(reward_app)
app.add_typer(weights_app)
app.add_typer(keys_app)
app.command()(fsck)
app.command()(doctor)


@app.command()
def up(
    host: Annotated[
        str, typer.Option(help="Address to listen at; callers need a key unless it is loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    data_dir: DataDir = None,
    workers: Annotated[int | None, typer.Option(min=0, max=64, help="Worker processes.")] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Run on the Ray cluster of RAY_ADDRESS, else on this machine's.")
    ] = False,
) -> None:
    """Run the service (API and workers) until Ctrl-C; prints {"url": …} when it is ready."""
    from service.jobs.errors import StoreUnavailable
    from service.jobs.objects import UnfitStore
    from workers.cluster import ClusterUnusable
    from workers.up import check_stores, run_service
    from workers.weights import check_weights

    try:
        settings = authenticating(_settings(data_dir=data_dir, workers=workers), host)
        if not cluster:
            check_gpus(settings)
        check_weights()
        check_stores(settings)
    except (ValueError, FileNotFoundError, StoreUnavailable, UnfitStore) as error:
        usage(str(error))
    address = os.environ.get("RAY_ADDRESS", "auto") if cluster else None
    try:
        status = run_service(settings, host, port, address)
    except ClusterUnusable as error:
        usage(str(error))
    except OSError as error:
        usage(f"cannot listen at {host}:{port}: {error.strerror or error}. Choose another --port, or 0.")
    raise typer.Exit(status)


@app.command()
def worker(
    data_dir: DataDir = None,
    name: Annotated[str | None, typer.Option(help="Its name in the jobs' attempts.")] = None,
) -> None:
    """Run one worker in this process, without Ray (for debugging); Ctrl-C drains it."""
    import logging
    import signal

    from service.jobs.errors import StoreUnavailable
    from service.jobs.objects import UnfitStore
    from workers.pool import build_worker
    from workers.up import check_stores
    from workers.weights import check_weights

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = _settings(data_dir=data_dir)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        check_stores(settings)
        check_weights()
        _check_device(settings)
    except (ValueError, FileNotFoundError, StoreUnavailable, UnfitStore) as error:
        _note(settings, "worker", str(error))
        usage(str(error))
    alone = build_worker(settings, name or f"worker-{os.getpid()}")
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: alone.drain())
    alone.run()


def check_gpus(settings: Settings) -> None:
    """Raise ValueError when the settings want a GPU that workers of this machine's own Ray cannot have."""
    if settings.worker_gpus > 0:
        raise ValueError(
            f"DREAMSERVE_WORKER_GPUS={settings.worker_gpus:g} lets a cluster's Ray give GPUs to workers, and the "
            "private Ray of `up` gives none. Unset it (DREAMSERVE_DEVICE=auto uses this machine's GPU), or use "
            "--cluster"
        )
    if settings.reward_placement == "actor" and settings.reward_gpu_share > 0:
        raise ValueError(
            f"DREAMSERVE_REWARD_GPU_SHARE={settings.reward_gpu_share:g} wants a share of a GPU for each shared reward, "
            "and the private Ray of `up` gives none. Unset it and set DREAMSERVE_REWARD_PLACEMENT=local (workers "
            "compute rewards where they compute the rest), or use --cluster"
        )
    _check_device(settings)


def _check_device(settings: Settings) -> None:
    """Raise ValueError when networks are to run on a GPU, and there is none that computes."""
    if settings.device == "cuda" and (found := check_gpu(settings)).status == "fail":
        raise ValueError(f"{found.found}; expected {found.expected}. {found.action}")


def authenticating(settings: Settings, host: str) -> Settings:
    """Decide whether callers at `host` need a key: unless the operator says otherwise, where others can reach it.

    Raises ValueError when that would let anybody on the network in.
    """
    if settings.auth == "off" and not _is_loopback(host):
        raise ValueError(
            f"--host {host} would open this service to the network, and DREAMSERVE_AUTH=off lets anybody use it. "
            "Leave DREAMSERVE_AUTH unset and make keys (dreamserve keys create), or use a loopback address "
            "(127.0.0.1, ::1)."
        )
    default = "off" if _is_loopback(host) else "on"
    return settings.model_copy(update={"auth": settings.auth or default})


@app.command()
def pool(
    address: Annotated[str, typer.Option(help="Ray cluster to start it on; auto: this machine's.")] = "auto",
    timeout_s: Annotated[float, typer.Option(min=0, help="How long to wait for the cluster.")] = 120.0,
) -> None:
    """Start the worker pool on a running Ray cluster, unless it is there; it goes on without this process."""
    from service.jobs.errors import StoreUnavailable
    from service.jobs.objects import UnfitStore
    from service.settings import Settings
    from workers.cluster import ClusterUnusable, ensure_pool
    from workers.up import check_stores

    try:
        settings = Settings()
        check_stores(settings)
    except (ValueError, StoreUnavailable, UnfitStore) as error:
        usage(str(error))
    try:
        started = ensure_pool(settings, address, timeout_s)
    except (ClusterUnusable, ValueError) as error:
        told = error.advice if isinstance(error, ClusterUnusable) else str(error)
        _note(settings, "pool", f"`dreamserve pool` could not start the pool. {told}")
        usage(str(error))
    typer.echo("The pool is started." if started else "The pool was there already.", err=True)


def _note(settings: Settings, source: Source, sentence: str) -> None:
    """Tell a service that is there already what keeps workers from starting, so that its /readyz can say it."""
    from service.jobs.errors import StoreUnavailable
    from service.jobs.store import JobStore
    from workers.starting import note_trouble

    with contextlib.suppress(StoreUnavailable, ValueError):  # this then is what is the matter, and is told
        store = JobStore(settings.database_url)
        note_trouble(store, source, sentence)
        store.close()


def main() -> None:
    """Run the command line."""
    app()


def _settings(**given: Any) -> Settings:
    """Read the operator's settings; what the command line gives wins."""
    from service.settings import Settings

    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    if settings.torch_threads is None:
        # One core is for the API, the rewards and Ray.
        share = ((os.cpu_count() or 1) - 1) // max(1, settings.workers)
        threads = max(1, min(MAX_DEFAULT_THREADS, share))
        settings = settings.model_copy(update={"torch_threads": threads})
    return settings


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
