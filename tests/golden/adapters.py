"""Which of our functions answers which golden case.

`CASES[name](case, tensors)` gets a case's document and its tensors and returns the answers under the names of the
expectations: `out.*` for tensors, a place in the document ("rows.*.weight") otherwise. A case belongs to the longest
name that its file's stem starts with. Adapters rename and reshape; the mathematics is in the functions they call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.golden import field_adapters, methods_adapters, priors_adapters, rewards_adapters
from tests.golden.compare import Case, Tensors

__all__ = ["CASES", "NOT_YET", "Adapter", "name_of"]

Adapter = Callable[[Case, Tensors], dict[str, Any]]

_MODULES = (priors_adapters, methods_adapters, field_adapters, rewards_adapters)
CASES: dict[str, Adapter] = {name: adapter for module in _MODULES for name, adapter in module.CASES.items()}
assert len(CASES) == sum(len(module.CASES) for module in _MODULES), "two adapters answer the same case"

NOT_YET = (
    # learning and evaluation
    "gpteval3d_elo",
    "pickscore_loss",
    "t3bench_quality",
    # the autoregressive generator
    "higrpo_formula",
    "vqvae3d",
)
"""Cases whose code a later issue builds: they are not collected. Any other case without an adapter fails."""


def name_of(stem: str) -> str | None:
    """The longest name in `CASES` or `NOT_YET` that `stem` starts with; None for an unknown case."""
    return max((name for name in (*CASES, *NOT_YET) if stem.startswith(name)), key=len, default=None)
