"""Variants: architecture x lookback x pipeline x the hyperparameters that are part of the id."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training.models.registry import architectures
from training.models.spec import Family, Value

LOOKBACKS: Final = (7, 14, 30, 60, 90)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One thing to train: ``params`` holds the hyperparameters that are part of the id; Optuna picks the others."""

    id: str
    architecture: str
    family: Family
    lookback: int
    pipeline: str
    params: tuple[tuple[str, Value], ...]

    @property
    def digest(self) -> str:
        """Content hash: equal digests are the same variant."""
        content = [self.architecture, self.lookback, self.pipeline, list(self.params)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def catalogue(pipelines: Sequence[str]) -> list[Variant]:
    """Every variant of the registered architectures over these pipelines and all lookbacks, in a stable order."""
    variants = []
    for spec in architectures().values():
        names = list(spec.grid)
        letters = [letter for letter, _ in spec.grid.values()]
        grid = list(itertools.product(*(choices for _, choices in spec.grid.values())))
        for pipeline, lookback, values in itertools.product(pipelines, LOOKBACKS, grid):
            suffix = "".join(f"-{letter}{value}" for letter, value in zip(letters, values, strict=True))
            variants.append(
                Variant(
                    id=f"{spec.name}-l{lookback}-{pipeline}{suffix}",
                    architecture=spec.name,
                    family=spec.family,
                    lookback=lookback,
                    pipeline=pipeline,
                    params=tuple(zip(names, values, strict=True)),
                )
            )
    return variants


def choose(variants: Sequence[Variant], budget: int) -> list[Variant]:
    """Take ``budget`` variants: architectures in turn, each time the one whose traits were used least so far.

    Traits are compared in the order pipeline, lookback, hyperparameters, and the catalogue's order breaks ties; past
    performance plays no part (that would be look-ahead).
    """
    waiting: dict[str, list[Variant]] = {}
    for variant in variants:
        waiting.setdefault(variant.architecture, []).append(variant)
    used: Counter[object] = Counter()
    chosen: list[Variant] = []
    for name in itertools.cycle(sorted(waiting)):
        if len(chosen) >= min(budget, len(variants)):
            return chosen
        if not waiting[name]:
            continue
        best = min(waiting[name], key=lambda variant: _usage(used, variant))
        waiting[name].remove(best)
        chosen.append(best)
        used.update(_traits(best))
    return chosen


def _traits(variant: Variant) -> tuple[object, ...]:
    own = variant.architecture
    return (own, variant.pipeline), variant.pipeline, (own, variant.lookback), variant.lookback, (own, variant.params)


def _usage(used: Counter[object], variant: Variant) -> tuple[int, ...]:
    return tuple(used[trait] for trait in _traits(variant))
