"""What the operator sets: the only reader of the environment (`DREAMSERVE_…`), but for a client's DREAMSERVE_API_KEY.

No setting may be called PORT or SERVICE_…: Kubernetes injects `DREAMSERVE_PORT` and the like into every
pod beside a Service named `dreamserve`. S3 endpoint, region and credentials are boto3's `AWS_*`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings"]


class Settings(BaseSettings):
    """All settings with their defaults, which are those of the embedded service."""

    model_config = SettingsConfigDict(
        env_prefix="DREAMSERVE_", frozen=True, extra="ignore", allow_inf_nan=False
    )

    data_dir: Path = Field(Path("~/.local/share/dreamserve"), description="Folder of everything local.")
    database_url: str = Field("", description="SQLAlchemy URL; default: SQLite in the data folder.")
    objects_url: str = Field(
        "", description="file:///folder or s3://bucket/prefix; default: in the data folder."
    )
    s3_public_endpoint: str | None = Field(
        None,
        description="Endpoint that clients reach, for presigned URLs; default: the same as the service's.",
    )
    weights_folder: Path = Field(
        Path(), description="Folder of imported checkpoints; default: weights in the data folder."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where published networks run; auto: on a GPU if there is one."
    )
    presign_s: int = Field(300, ge=1, le=900, description="Life of a presigned download URL, seconds.")
    auth: Literal["on", "off"] | None = Field(
        None, description="Whether callers need a key; default: on, but off for `dreamserve up` on loopback."
    )
    rate_limit_per_s: float = Field(
        100,
        ge=0,
        description="Requests a second that each API key may send to one frontend replica, twice as many at once after "
        "a pause; more get a 429. 0: any number, as where callers need no key.",
    )

    workers: int = Field(1, ge=0, le=1_000, description="Worker actors, at the most.")
    min_workers: int | None = Field(
        None,
        ge=0,
        le=1_000,
        description="Workers to keep when there is little to do; default: as many as `workers`, so none comes or goes.",
    )
    worker_idle_s: float = Field(
        60, ge=0, description="Seconds without work after which a spare worker ends."
    )
    worker_gpus: float = Field(0, ge=0, le=8, description="GPUs that a worker asks Ray for.")
    slots_per_worker: int = Field(2, ge=1, le=64, description="Scenes that a worker optimizes together.")
    torch_threads: int | None = Field(
        None, ge=1, description="CPU threads of a worker; default: torch's own choice."
    )
    reward_placement: Literal["local", "actor"] = Field(
        "actor", description="Rewards inside each worker, or in shared actors that batch over workers."
    )
    reward_gpu_share: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of one GPU, and of its memory, for each shared reward; 0: on the CPU.",
    )
    reward_precision: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="What shared rewards on a GPU compute in; weights and gradients stay float32."
    )
    shared_rewards: tuple[str, ...] | None = Field(
        None,
        description="Rewards that run in shared actors, as JSON; default: the shipped ones, and those in the weights "
        "folder.",
    )
    judge_url: str | None = Field(
        None,
        description="OpenAI-compatible endpoint of the judge `multimodal`, up to /v1; DREAMSERVE_JUDGE_KEY is its key.",
    )
    judge_model: str = Field("Qwen/Qwen2.5-VL-7B-Instruct", description="Model to ask there.")
    judge_folder: Path | None = Field(
        None,
        description="Instead of an endpoint: folder of a Qwen2.5-VL, which each worker loads when a job first asks it.",
    )
    judge_format: Literal[
        "checklist", "quality", "unified", "unified-alignment", "consistency", "appearance"
    ] = Field(
        "checklist",
        description="What it is asked; checklist: yes/no questions that it writes for each prompt.",
    )

    lease_s: float = Field(60, gt=0, description="Seconds a job stays a silent worker's.")
    report_interval_s: float = Field(
        1, gt=0, description="Seconds between a worker's reports; 5 on a cluster."
    )
    checkpoint_interval_s: float = Field(5, gt=0, description="Seconds between checkpoints; 60 on a cluster.")

    storage_budget_s: float = Field(
        600,
        gt=0,
        description="Seconds that an attempt keeps its lease and tries again while the object store does not answer.",
    )

    default_deadline_s: float = Field(3_600, gt=0, le=604_800, description="limits.deadline_s when left out.")
    default_max_attempts: int = Field(3, ge=1, le=20, description="limits.max_attempts when left out.")
    max_queued: int = Field(10_000, ge=1, description="Queued jobs beyond which submissions get a 429.")
    retention_days: float = Field(30, gt=0, description="Days that artifacts are kept.")

    webhook_allow_private: bool = Field(
        False,
        description="Let webhooks reach private addresses, and loopback by http: for intranets and tests.",
    )

    @model_validator(mode="after")
    def _fill_places(self) -> Self:
        folder = self.data_dir.expanduser().absolute()
        object.__setattr__(self, "data_dir", folder)
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{folder / 'jobs.sqlite3'}")
        given = self.weights_folder.expanduser()
        weights = folder / "weights" if given == Path() else given.absolute()
        object.__setattr__(self, "weights_folder", weights)
        if not self.objects_url:
            object.__setattr__(self, "objects_url", (folder / "objects").as_uri())
        if self.judge_folder is not None:
            object.__setattr__(self, "judge_folder", self.judge_folder.expanduser().absolute())
        return self

    @model_validator(mode="after")
    def _refuse_two_judges(self) -> Self:
        if self.judge_url is not None and self.judge_folder is not None:
            raise ValueError(
                "DREAMSERVE_JUDGE_URL and DREAMSERVE_JUDGE_FOLDER are both set, but there is one judge `multimodal`: "
                "unset one of them"
            )
        return self
