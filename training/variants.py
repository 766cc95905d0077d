"""Variants: architecture x lookback x pipeline x the hyperparameters that are part of the id, and the catalogue of 486.

The catalogue is cut from the full grid by named rules. They rest on what a model can use and what a fit may cost, never
on how a variant did: choosing by past performance here would be look-ahead that no later statistic could see.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from feature_repo.pipelines.catalog import CATALOGUE
from training.models.registry import architecture, architectures
from training.models.spec import Architecture, Family, Value

LOOKBACKS: Final = (7, 14, 30, 60, 90)
SIZES: Final[Mapping[Family, int]] = {"deep": 204, "classical": 171, "econometric": 75, "agent": 36}
"""How many of each family the catalogue keeps: 486 in all, cheap families more per architecture than agents."""
OWN_HISTORY: Final = "ohlcv"
WIDE: Final = 256


class UnknownVariantError(KeyError):
    """No variant of that id."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A named reason to leave variants out."""

    name: str
    reason: str
    excludes: Callable[[Variant], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What a rule left out, of what the rules before it had left."""

    rule: str
    reason: str
    num_excluded: int
    num_left: int


def _reads_no_features(variant: Variant) -> bool:
    return not architecture(variant.architecture).reads_features and variant.pipeline != OWN_HISTORY


def _is_wide_and_long(variant: Variant) -> bool:
    return variant.family == "deep" and dict(variant.params).get("hidden_size") == WIDE and variant.lookback >= 60


RULES: Final = (
    Rule(
        name="reads no features",
        reason=f"a model of the returns alone is the same on every pipeline; it is kept on {OWN_HISTORY}",
        excludes=_reads_no_features,
    ),
    Rule(
        name="wide and long",
        reason=f"{WIDE} units over 60 bars or more cost minutes a fit on one core, thousands of fits a night",
        excludes=_is_wide_and_long,
    ),
)
_SPREAD: Final = "spread evenly"
_SPREAD_REASON: Final = (
    f"of what is left each family keeps its number ({', '.join(f'{name} {size}' for name, size in SIZES.items())}), "
    "its architectures in turn, each time the variant whose pipeline, lookback and hyperparameters were used least"
)


def full_grid(pipelines: Sequence[str]) -> list[Variant]:
    """Every variant of the registered architectures over these pipelines and all lookbacks, in a stable order."""
    variants = []
    for spec in architectures().values():
        grid = list(itertools.product(*(choices for _, choices in spec.grid.values())))
        for pipeline, lookback, values in itertools.product(pipelines, LOOKBACKS, grid):
            variants.append(make_variant(spec, lookback, pipeline, values))
    return variants


def make_variant(spec: Architecture, lookback: int, pipeline: str, values: Sequence[Value]) -> Variant:
    """The variant of an architecture with these values of its grid's hyperparameters, in the grid's order."""
    letters = [letter for letter, _ in spec.grid.values()]
    suffix = "".join(f"-{letter}{value}" for letter, value in zip(letters, values, strict=True))
    return Variant(
        id=f"{spec.name}-l{lookback}-{pipeline}{suffix}",
        architecture=spec.name,
        family=spec.family,
        lookback=lookback,
        pipeline=pipeline,
        params=tuple(zip(spec.grid, values, strict=True)),
    )


def explain() -> tuple[list[Variant], list[Cut]]:
    """The catalogue, and what each rule left out of the full grid on the way to it."""
    left, cuts = full_grid(list(CATALOGUE)), []
    for rule in RULES:
        kept = [variant for variant in left if not rule.excludes(variant)]
        cuts.append(Cut(rule=rule.name, reason=rule.reason, num_excluded=len(left) - len(kept), num_left=len(kept)))
        left = kept
    chosen = {variant for family, size in SIZES.items() for variant in choose(_of(left, family), size)}
    kept = [variant for variant in left if variant in chosen]
    cuts.append(Cut(rule=_SPREAD, reason=_SPREAD_REASON, num_excluded=len(left) - len(kept), num_left=len(kept)))
    return kept, cuts


def catalogue() -> list[Variant]:
    """The default catalogue: 486 variants of every architecture, pipeline and lookback, in a stable order."""
    return explain()[0]


def find(variant_id: str) -> Variant:
    """The variant of that id, in the catalogue or only in the full grid; an error says how ids read."""
    for variant in full_grid(list(CATALOGUE)):
        if variant.id == variant_id:
            return variant
    raise UnknownVariantError(
        f"no variant {variant_id!r}; ids read architecture-l<lookback>-pipeline-<hyperparameters>, such as "
        f"{catalogue()[0].id!r}: see `perennial factory list`"
    )


def choose(variants: Sequence[Variant], budget: int) -> list[Variant]:
    """Take ``budget`` variants: architectures in turn, each time the one whose traits were used least so far.

    Turns go through the families, one architecture of each, the cheapest to fit first. Traits are compared in the order
    pipeline, lookback, hyperparameters, and the given order breaks ties; past performance plays no part (that would be
    look-ahead).
    """
    waiting: dict[str, list[Variant]] = {}
    for variant in variants:
        waiting.setdefault(variant.architecture, []).append(variant)
    used: Counter[object] = Counter()
    chosen: list[Variant] = []
    for name in itertools.cycle(_in_turn(variants)):
        if len(chosen) >= min(budget, len(variants)):
            return chosen
        if not waiting[name]:
            continue
        best = min(waiting[name], key=lambda variant: _usage(used, variant))
        waiting[name].remove(best)
        chosen.append(best)
        used.update(_traits(best))
    return chosen


def _in_turn(variants: Sequence[Variant]) -> list[str]:
    """Architectures such that neighbours are of different families."""
    families: dict[str, list[str]] = {}
    found = {(variant.family, variant.architecture) for variant in variants}
    for family, name in sorted(found, key=lambda each: (each[0], architecture(each[1]).cost_s, each[1])):
        families.setdefault(family, []).append(name)
    rows = itertools.zip_longest(*families.values())
    return [name for row in rows for name in row if name is not None]


def _of(variants: Sequence[Variant], family: Family) -> list[Variant]:
    return [variant for variant in variants if variant.family == family]


def _traits(variant: Variant) -> tuple[object, ...]:
    own = variant.architecture
    return (own, variant.pipeline), variant.pipeline, (own, variant.lookback), variant.lookback, (own, variant.params)


def _usage(used: Counter[object], variant: Variant) -> tuple[int, ...]:
    return tuple(used[trait] for trait in _traits(variant))
