import numpy as np
import pytest

from training.models.spec import ModelError
from training.models.state import ARRAYS_FILE, checksum, load_state, save_state

STATE = {
    "b": np.arange(6, dtype=np.float64).reshape(2, 3),
    "a": np.array([1, -2], dtype=np.int8),
    "none": np.zeros((3, 0)),
    "scalar": np.array(0.1),
}
SETTINGS = {"width": 32, "rate": 1e-3, "kind": "x", "flag": True}


def test_round_trip_is_bit_equal(tmp_path):
    save_state(tmp_path / "new" / "folder", settings=SETTINGS, state=STATE)
    settings, state = load_state(tmp_path / "new" / "folder")
    assert settings == SETTINGS
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in state.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in STATE.items()
    }
    assert checksum(settings, state) == checksum(SETTINGS, STATE)


def test_arrays_that_are_not_contiguous_keep_their_order(tmp_path):
    save_state(tmp_path, settings={}, state={"b": STATE["b"].T})
    np.testing.assert_array_equal(load_state(tmp_path)[1]["b"], STATE["b"].T)


def test_checksum_ignores_order_alone():
    backwards = dict(reversed(STATE.items()))
    assert checksum(dict(reversed(SETTINGS.items())), backwards) == checksum(SETTINGS, STATE)
    changes = [
        STATE | {"b": STATE["b"] + 1e-15},
        STATE | {"b": STATE["b"].reshape(3, 2)},
        STATE | {"b": STATE["b"].astype(np.float32)},
        STATE | {"a": STATE["a"].view(np.uint8)},
        {("c" if name == "b" else name): array for name, array in STATE.items()},
        {name: array for name, array in STATE.items() if name != "none"},
    ]
    sums = {checksum(SETTINGS, state) for state in [STATE, *changes]} | {checksum(SETTINGS | {"width": 33}, STATE)}
    assert len(sums) == len(changes) + 2


def test_settings_must_be_plain_finite_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        checksum({"rate": float("nan")}, {})


@pytest.mark.parametrize(
    "damage", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_text("")]
)
@pytest.mark.parametrize("name", [ARRAYS_FILE, "settings.json"])
def test_what_cannot_be_read_is_a_model_error(damage, name, tmp_path):
    save_state(tmp_path, settings=SETTINGS, state=STATE)
    damage(tmp_path / name)
    with pytest.raises(ModelError, match="no readable model"):
        load_state(tmp_path)
