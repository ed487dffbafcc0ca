"""A job's progress for a person: a live bar on a terminal, some plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console

    from service.client_core import Event

__all__ = ["ProgressBar", "printable"]

LINE_EVERY: Final = 0.25
"""Fraction of the steps between two lines where there is no terminal to draw a bar on."""


class ProgressBar:
    """Show the events of one job on `console` while the `with` block lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._stage = "queued"
        self._task = self._bar.add_task(self._stage, total=1.0, detail="")
        self._next_line_at = LINE_EVERY

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Bring the display up to one event."""
        match event.type:
            case "job.started" | "job.resumed":
                self._show_stage("loading")
            case "job.stage":
                self._show_stage(event.data["stage"])
            case "job.progress":
                self._show_progress(event.data)
            case "job.attempt_lost" if "retry_in_s" in event.data:
                self._console.print(
                    f"Attempt lost ({event.data['code']}); the service tries again by itself."
                )
                self._show_stage("queued")
            case "job.warning":
                self._console.print(f"Warning: {printable(event.data['detail'])}")
            case "job.succeeded":
                self._bar.update(self._task, completed=1.0, description="done")

    def _show_stage(self, stage: str) -> None:
        if stage == self._stage:
            return
        self._stage = stage
        self._bar.update(self._task, description=stage, detail="")
        if not self._console.is_terminal:
            self._console.print(f"{stage} …")

    def _show_progress(self, progress: dict[str, Any]) -> None:
        detail = f"step {progress['step']}/{progress['steps_total']}"
        if progress.get("steps_per_s"):
            detail += f" · {progress['steps_per_s']:.1f} steps/s"
        if progress.get("eta_s") is not None:
            detail += f" · {progress['eta_s']:.0f} s left"
        self._bar.update(self._task, completed=progress["fraction"], detail=detail)
        if not self._console.is_terminal and progress["fraction"] >= self._next_line_at:
            self._next_line_at = progress["fraction"] + LINE_EVERY
            self._console.print(f"{self._stage}: {detail}")


def printable(text: str) -> str:
    """Make text safe for a terminal: control characters and direction marks become `�`."""
    return "".join(character if character.isprintable() else "�" for character in text)
