"""The catalogue of pipelines: one file each, found by importing the package's modules."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Final

import feature_repo.pipelines as package
from feature_repo.pipelines.base import Pipeline, PipelineError


def _discover() -> dict[str, Pipeline]:
    found: dict[str, Pipeline] = {}
    for module in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        if module.name == __name__:
            continue
        declared = getattr(importlib.import_module(module.name), "PIPELINE", None)
        if isinstance(declared, Pipeline):
            if declared.name in found:
                raise PipelineError(f"two pipelines are named {declared.name!r}; rename the one in {module.name}")
            found[declared.name] = declared
    return dict(sorted(found.items()))


PIPELINES: Final = _discover()
CATALOGUE: Final = {name: declared for name, declared in PIPELINES.items() if name != "bar"}
"""The pipelines that variants are made of: all but ``bar``, which every dataset joins for prices and volatility."""


def pipeline(name: str) -> Pipeline:
    """The pipeline of that name, or an error that lists what there is."""
    if name not in PIPELINES:
        raise PipelineError(f"no pipeline {name!r}; there are {sorted(PIPELINES)}")
    return PIPELINES[name]
