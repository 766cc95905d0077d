"""The deadline of a fit: it fails the fit, it never truncates it."""

from __future__ import annotations

import time
from collections.abc import Callable

from training.models.spec import Budget, ModelError


class Deadline:
    """Counts from its making; ``check`` between epochs, rounds or steps raises once the budget's time is over."""

    def __init__(self, budget: Budget, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed_s = budget.deadline_s
        self._clock = clock
        self._started_s = clock()

    def check(self, doing: str) -> None:
        """Raise ``ModelError`` when the time is over; ``doing`` says where the fit stood."""
        elapsed_s = self._clock() - self._started_s
        if elapsed_s >= self._allowed_s:
            raise ModelError(
                f"the fit took {elapsed_s:.1f} s at {doing}, allowed are {self._allowed_s:g} s; "
                "give it more time (Budget.deadline_s) or fewer steps"
            )
