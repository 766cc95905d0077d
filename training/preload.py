"""What a worker has at hand before its first task.

Imported once, by the process that this machine's workers are forked from: torch and its kind take seconds of CPU, which
every worker, and every one that follows a killed one, would spend anew. Nothing here may start a thread, which a forked
process would not have, or touch a GPU.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Final

_SLOW: Final = (
    *("feature_repo.pipelines.catalog", "feature_repo.store.record", "training.stacking"),
    *("sklearn.ensemble", "sklearn.linear_model", "sklearn.svm", "lightgbm", "xgboost", "scipy.optimize"),
)


def _load() -> None:
    gc.disable()  # what an import makes is there for good, and looking through it takes a third of the time
    try:
        for name in _SLOW:
            import_module(name)
        _use()
    finally:  # an import that fails is left to whoever needs it, and workers must not do without the collector
        gc.freeze()
        gc.enable()


def _use() -> None:
    """Have those load the rest who load most of what they need when they are first used."""
    import numpy as np
    import torch

    from feature_repo.kernels.elementwise import log_return
    from training.models.registry import architectures

    architectures()
    log_return(np.ones(2), 1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


_load()
