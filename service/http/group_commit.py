"""Group commit: what concurrent requests want written is written together, and each is answered when it is durable.

A commit costs a sync of the disk and a dozen statements, however many rows it writes. So while one group is being
committed, the next one gathers; a request that comes alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MAX_GROUP", "GroupCommit"]

Wish = TypeVar("Wish")
Answer = TypeVar("Answer")

MAX_GROUP: Final = 100
"""Wishes of one transaction: it holds SQLite's only write lock for a fraction of a second."""


class GroupCommit(Generic[Wish, Answer]):
    """Commits wishes in groups, in the order in which they came; for coroutines of one event loop."""

    def __init__(self, commit: Callable[[Sequence[Wish]], Sequence[Answer | Exception]]) -> None:
        """`commit` runs in a thread, once at a time, and answers every wish when all are durable, or raises."""
        self._commit = commit
        self._waiting: list[tuple[Wish, asyncio.Future[Answer]]] = []
        self._committing: asyncio.Task[None] | None = None

    async def __call__(self, wish: Wish) -> Answer:
        """Have a wish committed; its answer. Raises its own exception, or that of its whole group.

        A caller that is canceled takes back its wish if no group has it yet; else it is committed all the same.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((wish, answer))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_groups())
        return await answer

    async def _commit_groups(self) -> None:
        try:
            while group := self._next_group():
                await self._commit_group(group)
        finally:
            self._committing = None

    def _next_group(self) -> list[tuple[Wish, asyncio.Future[Answer]]]:
        wanted = [(wish, answer) for wish, answer in self._waiting if not answer.cancelled()]
        self._waiting = wanted[MAX_GROUP:]
        return wanted[:MAX_GROUP]

    async def _commit_group(self, group: list[tuple[Wish, asyncio.Future[Answer]]]) -> None:
        outcomes: Sequence[Answer | Exception]
        try:
            outcomes = await run_in_threadpool(self._commit, [wish for wish, _ in group])
            assert len(outcomes) == len(group), f"{len(group)} wishes got {len(outcomes)} answers"
        except Exception as error:
            outcomes = [error] * len(group)
        for (_, answer), outcome in zip(group, outcomes, strict=True):
            if answer.cancelled():
                continue
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
