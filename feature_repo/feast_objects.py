"""The only file that ``feast apply`` sees (``.feastignore`` hides the rest): the registry's objects, one a name.

``PERENNIAL_FEATURES_ROOT`` is the folder of feature tables of one market and interval, ``.../<market>/<interval>``.
"""

from __future__ import annotations

import os
from pathlib import Path

from feature_repo.definitions.objects import build_repo_objects

_root = Path(os.environ["PERENNIAL_FEATURES_ROOT"])

# Feast collects a module's attributes; a view and a service may share a name, hence the type in it.
globals().update(
    {
        f"{type(declared).__name__}_{declared.name}": declared
        for declared in build_repo_objects(features_root=_root, interval=_root.name)
    }
)
