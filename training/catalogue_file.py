"""A desk's own catalogue: a TOML file of ids, of small grids each over one architecture, or of both.

::

    ids = ["lightgbm-l14-momentum-n7"]

    [[variants]]
    architecture = "lstm"
    lookbacks = [20, 40]            # bars; without it 7, 14, 30, 60 and 90
    pipelines = ["technical"]       # without it all eight
    hidden_size = [32, 64]          # without it the architecture's own choices
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from feature_repo.pipelines.catalog import CATALOGUE
from training.models.registry import architecture, architectures
from training.models.spec import Architecture, Value
from training.variants import LOOKBACKS, Variant, full_grid, make_variant

LONGEST_LOOKBACK: Final = max(LOOKBACKS)
_AXES: Final = ("lookbacks", "pipelines")


class CatalogueError(ValueError):
    """A catalogue that can't be read; the message names the file and entry, what it says and what it may say."""


def read_catalogue(path: Path) -> list[Variant]:
    """The variants of a file, ids first, each once; the hyperparameters of grids may take values of one's own."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"no catalogue in {path}: {error}; write ids or [[variants]] entries in TOML") from error
    ids, entries = content.pop("ids", []), content.pop("variants", [])
    if content or not isinstance(ids, list) or not isinstance(entries, list) or not (ids or entries):
        raise CatalogueError(
            f"{path} must hold ids = [...] or [[variants]] entries and nothing else; it has {sorted(content) or 'none'}"
        )
    grids = [variant for n, entry in enumerate(entries, 1) for variant in _grid(entry, f"{path}, entry {n}")]
    return list(dict.fromkeys([*_named(ids, str(path)), *grids]))


def _named(ids: Sequence[Any], where: str) -> list[Variant]:
    if not ids:
        return []
    known = {variant.id: variant for variant in full_grid(list(CATALOGUE))}
    if unknown := [each for each in ids if each not in known]:
        raise CatalogueError(f"{where}: there are no variants {unknown}; `perennial factory list` shows ids")
    return [known[each] for each in ids]


def _grid(entry: Any, where: str) -> list[Variant]:
    if not isinstance(entry, Mapping):
        raise CatalogueError(f"{where}: {entry!r} is no table; write it under a [[variants]] of its own")
    spec = _architecture(entry, where)
    unknown = sorted(set(entry) - {"architecture", *_AXES, *spec.grid})
    if unknown:
        allowed = ["architecture", *_AXES, *spec.grid]
        raise CatalogueError(f"{where}: {spec.name} has no {unknown} that is part of a variant; it may say {allowed}")
    lookbacks = _values(entry, "lookbacks", LOOKBACKS, where)
    if wrong := [each for each in lookbacks if not 2 <= each <= LONGEST_LOOKBACK]:
        raise CatalogueError(f"{where}: lookbacks {wrong} are outside 2 to {LONGEST_LOOKBACK} bars")
    pipelines = _values(entry, "pipelines", tuple(CATALOGUE), where)
    choices = [_values(entry, name, own, where) for name, (_, own) in spec.grid.items()]
    return [make_variant(spec, *each) for each in itertools.product(lookbacks, pipelines, itertools.product(*choices))]


def _architecture(entry: Mapping[str, Any], where: str) -> Architecture:
    name = entry.get("architecture")
    if name not in architectures():
        raise CatalogueError(f"{where}: architecture {name!r} is not one of {sorted(architectures())}")
    return architecture(name)


def _values(entry: Mapping[str, Any], name: str, default: Sequence[Value], where: str) -> Sequence[Any]:
    """What an entry says of a name: a list of values of the default's type."""
    values = entry.get(name, list(default))
    if not isinstance(values, list) or not values or not all(type(each) is type(default[0]) for each in values):
        raise CatalogueError(f"{where}: {name} is {values!r}; it must be a list such as {list(default)}")
    if isinstance(default[0], str) and (wrong := [each for each in values if each not in default]):
        raise CatalogueError(f"{where}: {name} can't be {wrong}; choose from {list(default)}")
    return values
