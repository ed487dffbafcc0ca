"""The loop: several scenes are optimized together, and every network is called once per step for all of them.

A scene's step is a coroutine (`Scene.loss`) which renders and then asks networks; the engine starts one per
scene, and as long as any waits, answers the questions of the earliest kind, those to the same network together.
Serving the earliest kind first makes the questions of methods of different depth meet.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor

from workers.contracts import AskKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.contracts import Ask
    from workers.scene import Scene

__all__ = ["Engine", "Outcome"]

_log = logging.getLogger(__name__)

_ORDER = {kind: rank for rank, kind in enumerate(get_args(AskKind))}


class Outcome(NamedTuple):
    """What one step did to one scene."""

    scene: Scene
    loss: float | None
    """The step's loss, regularizers included; None if there was none."""
    readings: dict[str, float]
    """What the method recorded, by name: scores, gaps."""
    error: Exception | None
    """Why the scene ended (it is retired already), or None."""


class Engine:
    """The scenes of one worker, stepped together. Scenes join and leave between steps."""

    def __init__(self) -> None:
        self._scenes: list[Scene] = []

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The scenes that the next step will serve, in the order of their admission."""
        return tuple(self._scenes)

    def admit(self, scene: Scene) -> None:
        """Let a scene take part from the next step on."""
        assert scene not in self._scenes, "a scene is admitted once"
        self._scenes.append(scene)

    def retire(self, scene: Scene) -> None:
        """Let a scene go; no other scene notices."""
        self._scenes.remove(scene)

    def step(self) -> list[Outcome]:
        """Take one optimization step with every scene; what raises ends its own scene only, and is in its outcome."""
        turns = [_Turn(scene) for scene in self._scenes]
        _answer_all(turns)
        try:
            _backward(turns)
        except Exception as error:
            # Whose fault it was cannot be told from a joint pass, so each scene takes its step again, alone.
            _log.warning("backward for %d scenes failed, going one by one: %s", len(turns), error)
            for turn in turns:
                turn.again()
        outcomes = [turn.end() for turn in turns]
        self._scenes = [outcome.scene for outcome in outcomes if outcome.error is None]
        return outcomes


class _Turn:
    """One scene's coroutine in one step."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.draws = scene.generator.get_state()
        self.start()

    def start(self) -> None:
        self.coroutine = self.scene.loss()
        self.waiting: Ask[Any] | None = None
        self.loss: Tensor | None = None
        self.error: Exception | None = None
        self.advance(None)

    def advance(self, answer: object) -> None:
        """Send the scene its answer (an exception is thrown) and run it up to its next question or its end."""
        asked = self.waiting
        self.waiting = None
        try:
            method = self.coroutine
            ask = method.throw(answer) if isinstance(answer, Exception) else method.send(answer)
            in_order = asked is None or _ORDER[asked.kind] <= _ORDER[ask.kind]
            assert in_order, f"a method asks in the order {', '.join(_ORDER)}"
            self.waiting = ask
        except StopIteration as stop:
            self.loss = stop.value
        except Exception as error:
            self.error = error

    def again(self) -> None:
        """Repeat the whole turn alone, with the same draws."""
        if self.error is None:
            self.scene.generator.set_state(self.draws)
            self.start()
            _answer_all([self])
        try:
            _backward([self])
        except Exception as error:
            self.error = error

    def end(self) -> Outcome:
        """Let the optimizer step, unless something went wrong."""
        try:
            if self.error is None:
                self.scene.descend()
        except Exception as error:
            self.error = error
        loss = None if self.loss is None else self.loss.item()
        readings = {name: value.item() for name, value in self.scene.readings.items()}
        return Outcome(self.scene, loss, readings, self.error)


def _backward(turns: list[_Turn]) -> None:
    """Send one backward pass through all finite losses; a scene whose loss is not finite ends before."""
    losses = []
    for turn in turns:
        if turn.error is None:
            assert turn.loss is not None
            try:
                turn.scene.check_loss(turn.loss)
                losses.append(turn.loss)
            except FloatingPointError as error:
                turn.error = error
    if losses:
        torch.autograd.backward(losses)


def _answer_all(turns: list[_Turn]) -> None:
    """Drive the turns to their ends: the earliest kind of question first, each network asked once for it."""
    while waiting := [(turn, turn.waiting) for turn in turns if turn.waiting]:
        earliest = min((ask.kind for _, ask in waiting), key=_ORDER.__getitem__)
        groups: dict[tuple[int, bool], list[tuple[_Turn, Ask[Any]]]] = {}
        for turn, ask in waiting:
            if ask.kind == earliest:
                # Rows that need no gradient stay apart from those that do: it would cost them a backward's memory.
                groups.setdefault((id(ask.network), _differentiable(ask.arguments)), []).append((turn, ask))
        for group in groups.values():
            answers = _answer([ask for _, ask in group])
            for (turn, _), answer in zip(group, answers, strict=True):
                turn.advance(answer)


def _answer(asks: list[Ask[Any]]) -> list[object]:
    """Answer questions of one kind to one network by one call, or one by one if that raises.

    The answers are in the order of the questions; one that raised is its exception.
    """
    if len(asks) > 1:
        try:
            counts = [_num_rows(ask.arguments) for ask in asks]
            return _split(asks[0].call(*_join([ask.arguments for ask in asks])), counts)
        except Exception as error:
            _log.warning("%s for %d scenes failed, asking one by one: %s", asks[0].kind, len(asks), error)
    answers: list[object] = []
    for ask in asks:
        try:
            answers.append(ask.now())
        except Exception as error:
            answers.append(error)
    return answers


# --- rows: arguments and answers are tensors, lists of strings, and (named) tuples of these ---


def _num_rows(value: Any) -> int:
    return len(value) if isinstance(value, Tensor | list) else _num_rows(value[0])


def _differentiable(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, tuple) and any(_differentiable(part) for part in value)


def _join(values: Sequence[Any]) -> Any:
    """Concatenate values of one structure along their rows; None where one of them is."""
    if any(value is None for value in values):
        return None
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, list):
        return [item for value in values for item in value]
    return _rebuild(first, [_join(parts) for parts in zip(*values, strict=True)])


def _split(value: Any, counts: list[int]) -> list[Any]:
    """Cut a value's rows into parts of `counts` rows: the inverse of `_join`."""
    if isinstance(value, Tensor):
        return list(value.split(counts))
    if isinstance(value, list):
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        return [value[end - count : end] for end, count in zip(ends, counts, strict=True)]
    parts = zip(*(_split(part, counts) for part in value), strict=True)
    return [_rebuild(value, list(part)) for part in parts]


def _rebuild(like: Any, parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
