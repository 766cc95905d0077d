"""Imports Feast in half the time; to be imported before anything of Feast.

Feast has typeguard recompile its classes so that each call checks its types, which takes 3 of the 5 seconds that
importing it takes. What we hand to Feast is checked by mypy; under ``python -O`` typeguard leaves the checks out too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typeguard


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


with _unchecked():
    import feast  # noqa: F401
