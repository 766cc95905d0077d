"""The registry of architectures: one file each, found by importing the package's modules."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import training.models as package
from training.models.spec import Architecture


class UnknownArchitectureError(KeyError):
    """No architecture of that name."""


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture, by name: each module below ``training.models`` that has an ``ARCHITECTURE``."""
    found: dict[str, Architecture] = {}
    for module in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}."):
        architecture = getattr(importlib.import_module(module.name), "ARCHITECTURE", None)
        if isinstance(architecture, Architecture):
            if architecture.name in found:
                raise ValueError(f"two architectures are named {architecture.name!r}; rename the one in {module.name}")
            found[architecture.name] = architecture
    return dict(sorted(found.items()))


def architecture(name: str) -> Architecture:
    """The architecture of that name, or an error that lists what there is."""
    try:
        return architectures()[name]
    except KeyError:
        raise UnknownArchitectureError(f"no architecture {name!r}; there are {sorted(architectures())}") from None
