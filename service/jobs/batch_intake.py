"""Taking a batch in while its lines arrive: memory holds one chunk of them, and the names of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from service.jobs.batch_input import MAX_ITEMS, MAX_LINE_BYTES, Item, Lines, items_of
from service.jobs.errors import FieldProblem, Refused
from service.jobs.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.jobs.batch_input import Plan
    from service.jobs.batches import BatchStore
    from service.jobs.defaults import Admitted
    from service.jobs.documents import Document
    from service.jobs.errors import RefusalCode

__all__ = ["Intake"]

CHUNK: Final = 500
"""Items that one transaction writes: tens of milliseconds, so that an upload holds up no worker."""
NUM_SHOWN: Final = 20
"""Problems that a batch's document, or its refusal, shows; each item keeps its own."""


class Intake:
    """One batch on its way in; to be closed, whether it was accepted or not.

    A batch is refused as a whole when two lines have one custom_id, when it has too many jobs, or when no line is
    valid. The refusal is raised by `accept`, so that the sender can first be heard out.
    """

    def __init__(
        self, store: BatchStore, owner: str, plan: Plan, admit: Callable[[object], Admitted]
    ) -> None:
        """`admit` turns a body into a job that this server can run, or raises `Refused`."""
        self._store, self._owner, self._plan, self._admit = store, owner, plan, admit
        self._batch_id = store.begin(owner, plan.options)
        self._lines = Lines()
        self._line_of: dict[str, int] = {}
        self._chunk: list[Item] = []
        self._num_items = self._num_invalid = 0
        self._shown: list[dict[str, Any]] = []
        self._refusal: Refused | None = None
        self._accepted = False

    def close(self) -> None:
        """Leave nothing behind of a batch that was not accepted."""
        if not self._accepted:
            self._store.discard(self._batch_id)

    def feed(self, block: bytes) -> None:
        """Take some bytes of JSONL in, wherever they are cut."""
        self._take_lines(self._lines.feed(block))

    def end_lines(self) -> None:
        """Say that no more bytes come."""
        self._take_lines(self._lines.end())

    def take(self, line: int, entry: object) -> None:
        """Take one line in, parsed; the first is number 1."""
        if self._refusal is None:
            self._add(items_of(line, entry, self._plan, self._admit))

    def take_all(self, entries: Iterable[object]) -> None:
        """Take all lines in, parsed."""
        for line, entry in enumerate(entries, 1):
            self.take(line, entry)

    def accept(self, idempotency_key: str | None, body_hash: str | None) -> tuple[Document, bool]:
        """Make it a batch: its document, and whether it is new. Raises `Refused`, `IdempotencyKeyReused`."""
        if idempotency_key is not None and body_hash is not None:
            # First, since a repeated request gets its first answer even if workers have changed what they can do.
            known = self._store.made_before(self._owner, idempotency_key, body_hash)
            if known is not None:
                return known, False
        if self._refusal is None and self._num_invalid == self._num_items:
            self._refusal = self._nothing_valid()
        if self._refusal is not None:
            raise self._refusal
        self._flush()
        answer = self._store.accept(
            self._batch_id, self._shown, idempotency_key=idempotency_key, body_hash=body_hash
        )
        self._accepted = True
        return answer

    def _take_lines(self, lines: Iterable[tuple[int, bytes | None]]) -> None:
        for number, line in lines:
            if self._refusal is not None:
                continue
            if line is None:
                self._add([_unreadable(number, f"the line is longer than {MAX_LINE_BYTES:,} bytes")])
                continue
            try:
                entry = parse_json(line)
            except ValueError as error:
                self._add([_unreadable(number, f"the line is not JSON in UTF-8: {error}")])
            else:
                self.take(number, entry)

    def _add(self, items: Iterable[Item]) -> None:
        """Take one line's items in, made as they are asked for: there may be many of one line."""
        for item in items:
            self._check(item)
            if self._refusal is not None:
                self._chunk.clear()
                return
            self._num_items += 1
            self._note(item)
            self._chunk.append(item)
            if len(self._chunk) == CHUNK:
                self._flush()

    def _check(self, item: Item) -> None:
        name = item.custom_id or str(item.line)
        other = self._line_of.setdefault(name, item.line)
        if other != item.line:
            detail = f"custom_id {name!r} is on line {other} and on line {item.line}"
            self._refuse(
                f"/items/{item.line - 1}/custom_id", detail, "Give each line a custom_id of its own."
            )
        elif self._num_items == MAX_ITEMS:
            detail = f"more than {MAX_ITEMS:,} jobs, sweep included, which is the most of one batch"
            self._refuse(f"/items/{item.line - 1}", detail, "Split it into several batches.")

    def _note(self, item: Item) -> None:
        if item.spec is not None:
            return
        self._num_invalid += 1
        room = NUM_SHOWN - len(self._shown)
        own = {"line": item.line, "custom_id": item.custom_id}
        self._shown += [{**own, **one} for one in item.problems[:room]]

    def _flush(self) -> None:
        if self._chunk:
            self._store.add(self._batch_id, self._chunk, self._num_items - len(self._chunk))
            self._chunk = []

    def _refuse(self, pointer: str, detail: str, suggestion: str) -> None:
        self._refusal = Refused("invalid-request", [FieldProblem(pointer, detail)], suggestion)

    def _nothing_valid(self) -> Refused:
        if not self._num_items:
            problem = FieldProblem("/items", "the batch is empty: expected at least one line")
            return Refused(
                "invalid-request", [problem], 'A line is {"custom_id": "a", "body": {"prompt": "…"}}.'
            )
        problems = [FieldProblem(one["pointer"], one["detail"]) for one in self._shown]
        codes = {one["code"] for one in self._shown}
        code: RefusalCode = codes.pop() if len(codes) == 1 else "invalid-request"
        return Refused(
            code, problems, "No line is valid, so nothing was submitted; these are the first problems."
        )


def _unreadable(line: int, detail: str) -> Item:
    problem = {"pointer": f"/items/{line - 1}", "detail": detail[:300], "code": "invalid-request"}
    return Item(line, None, problems=[problem])
