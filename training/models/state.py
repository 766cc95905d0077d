"""Named arrays and settings on disk: safetensors and JSON, nothing that can execute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from training.models.spec import ModelError, Params, State

SETTINGS_FILE: Final = "settings.json"
ARRAYS_FILE: Final = "arrays.safetensors"


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON of which equal mappings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def save_state(folder: Path, *, settings: Params, state: State) -> None:
    """Write the settings and arrays of a model into ``folder``."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text(canonical_json(settings))
    save_file({name: np.asarray(array, order="C") for name, array in state.items()}, folder / ARRAYS_FILE)


def load_state(folder: Path) -> tuple[dict[str, Any], State]:
    """What ``save_state`` wrote: (settings, arrays)."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return json.loads((folder / SETTINGS_FILE).read_text()), load_file(folder / ARRAYS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"no readable model in {folder}: {error}; restore the artifact or refit the variant"
        ) from error


def checksum(settings: Mapping[str, Any], state: State) -> str:
    """SHA-256 over the settings' canonical JSON and every array's name, type, shape and bytes, in name order."""
    digest = hashlib.sha256(canonical_json(settings).encode())
    for name in sorted(state):
        array = np.asarray(state[name], order="C")
        digest.update(f"\n{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
