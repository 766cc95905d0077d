"""Imports Feast in a fifth of the time; to be imported before anything of Feast.

Feast has typeguard recompile its classes so that each call checks its types, which takes 3 of the 5 seconds that
importing it takes. What we hand to Feast is checked by mypy; under ``python -O`` typeguard leaves the checks out too.
Feast also imports torch, for answers as tensors, which takes another second or more: here only once it asks for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import typeguard

_TORCH_WRAPPER: Final = "feast.torch_wrapper"


@contextmanager
def _unchecked() -> Iterator[None]:
    checked = typeguard.typechecked
    typeguard.typechecked = _as_it_is
    try:
        yield
    finally:
        typeguard.typechecked = checked


def _as_it_is(target: Any = None, **_settings: object) -> Any:
    return _as_it_is if target is None else target


def _torch_when_asked() -> ModuleType:
    """Stands in for Feast's module of that name, of which Feast uses this one function."""
    wrapper = ModuleType(_TORCH_WRAPPER)
    vars(wrapper).update(get_torch=lambda: importlib.import_module("torch"))
    return wrapper


sys.modules.setdefault(_TORCH_WRAPPER, _torch_when_asked())
with _unchecked():
    import feast  # noqa: F401
