"""Group commit: who comes while a group is being committed shares the next one, and nobody pays for another's fault."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from service.http.group_commit import MAX_GROUP, GroupCommit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PATIENCE_S = 10.0


class Ledger:
    """Something durable that takes one group at a time, and no new one before it is told to go on."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.began = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.commit = GroupCommit(self._write)

    def _write(self, wishes: Sequence[str]) -> list[str | Exception]:
        self.groups.append(list(wishes))
        self.began.release()
        assert self.go_on.acquire(timeout=PATIENCE_S)
        if "outage" in wishes:
            raise OSError("the disk is gone")
        if "miscount" in wishes:
            return []
        return [ValueError(wish) if wish.startswith("bad") else f"did {wish}" for wish in wishes]

    async def ask(self, *wishes: str) -> list[asyncio.Task[str]]:
        """Wish for some things at once; each waits for its answer when this returns."""
        asked = [asyncio.create_task(self.commit(wish)) for wish in wishes]
        await asyncio.sleep(0)
        return asked

    async def take_group(self) -> None:
        """Wait until a group is being committed."""
        assert await asyncio.to_thread(self.began.acquire, timeout=PATIENCE_S)


def run(scenario: Callable[[Ledger], Awaitable[None]]) -> Ledger:
    ledger = Ledger()
    asyncio.run(asyncio.wait_for(scenario(ledger), PATIENCE_S))
    return ledger


async def answers(asked: list[asyncio.Task[str]]) -> list[str]:
    found = await asyncio.gather(*asked, return_exceptions=True)
    return [one if isinstance(one, str) else repr(one) for one in found]


def test_who_comes_during_a_commit_shares_the_next_one_in_order() -> None:
    async def scenario(ledger: Ledger) -> None:
        first = await ledger.ask("a")
        await ledger.take_group()
        more = await ledger.ask("b", "c", "d")
        assert not first[0].done()  # nobody is answered before the commit
        ledger.go_on.release()
        assert await answers(first) == ["did a"]
        await ledger.take_group()
        assert not any(one.done() for one in more)
        ledger.go_on.release()
        assert await answers(more) == ["did b", "did c", "did d"]
        ledger.go_on.release()
        assert await answers(await ledger.ask("e")) == ["did e"]

    assert run(scenario).groups == [["a"], ["b", "c", "d"], ["e"]]


def test_a_bad_wish_spoils_no_other_of_its_group() -> None:
    async def scenario(ledger: Ledger) -> None:
        first = await ledger.ask("a")
        await ledger.take_group()
        more = await ledger.ask("b", "bad c", "d")
        ledger.go_on.release(2)
        assert await answers(first + more) == ["did a", "did b", "ValueError('bad c')", "did d"]

    run(scenario)


@pytest.mark.parametrize(("fault", "told"), [("outage", "the disk is gone"), ("miscount", "2 wishes got 0")])
def test_a_commit_that_fails_is_told_to_its_whole_group_and_to_no_other(fault: str, told: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        first = await ledger.ask("a")
        await ledger.take_group()
        unlucky = await ledger.ask("b", fault)
        ledger.go_on.release()
        await ledger.take_group()
        later = await ledger.ask("c")
        ledger.go_on.release(2)
        assert await answers(first + later) == ["did a", "did c"]
        assert all(told in one for one in await answers(unlucky))

    run(scenario)


def test_a_canceled_caller_takes_back_its_wish_unless_it_is_being_committed() -> None:
    async def scenario(ledger: Ledger) -> None:
        (committing,) = await ledger.ask("a")
        await ledger.take_group()
        waiting = await ledger.ask("b", "c", "d")
        committing.cancel()
        waiting[1].cancel()
        await asyncio.sleep(0)
        ledger.go_on.release(2)
        assert await answers([waiting[0], waiting[2]]) == ["did b", "did d"]

    assert run(scenario).groups == [["a"], ["b", "d"]]


def test_a_group_is_bounded() -> None:
    async def scenario(ledger: Ledger) -> None:
        first = await ledger.ask("a")
        await ledger.take_group()
        many = await ledger.ask(*(str(number) for number in range(MAX_GROUP + 1)))
        ledger.go_on.release(3)
        assert (await answers(first + many))[1:] == [f"did {number}" for number in range(MAX_GROUP + 1)]

    assert [len(group) for group in run(scenario).groups] == [1, MAX_GROUP, 1]
