import dataclasses

import numpy as np
import pytest
import torch

from tests.training.models.toys import learning_windows, toy_panel
from training.dataset import window
from training.models.deep import sequence
from training.models.deep.sequence import UPDATE_BATCH, UPDATE_EPOCHS
from training.models.fitted import complete_params
from training.models.registry import architectures
from training.models.spec import EPOCHS, Budget, ModelError, OnlineModel
from training.models.state import checksum
from training.models.torch_training import PATIENCE, penalised
from training.models.windows import Scaler, sequence_samples

DEEP = {name: spec for name, spec in architectures().items() if spec.family == "deep"}
LOOKBACK = 5
PANEL = toy_panel(memory=0.75)

every_network = pytest.mark.parametrize("name", sorted(DEEP))


def new_model(name="dlinear", **params):
    return DEEP[name].model(complete_params(DEEP[name], params), lookback=LOOKBACK)


SHORT = Budget(max_epochs=8)


def fitted(name="dlinear", *, panel=PANEL, budget=SHORT, **params):
    model = new_model(name, **params)
    model.fit(*learning_windows(panel, lookback=LOOKBACK), seed=1, budget=budget)
    return model


def labelled(first, stop, *, panel=PANEL):
    return window(panel, first, stop, lookback=LOOKBACK, learn_T=np.ones(len(panel.sample_times_T), dtype=bool))


def digest(model) -> str:
    return checksum({}, model.state())


# The grid that every network is searched over.


@every_network
def test_learning_rates_dropout_and_penalties_can_all_be_picked(name):
    space = DEEP[name].space
    assert set(space["learning_rate"]) == {1e-4, 5e-4, 1e-3}
    assert set(space.get("dropout", (0.1, 0.2, 0.3))) == {0.1, 0.2, 0.3}
    assert ("dropout" in space) == any(
        isinstance(layer, torch.nn.Dropout | torch.nn.Dropout1d) for layer in layers(name)
    )
    for penalty in ("l1", "weight_decay"):
        assert min(space[penalty]) == 0 < max(space[penalty]), "each alone, both and none"
    if DEEP[name].grid:
        assert DEEP[name].grid == {"hidden_size": ("h", (64, 128, 256))}


@every_network
def test_what_l1_penalises_is_what_multiplies_inputs(name):
    network = network_of(name)
    names = set(penalised(network))
    linear = {path for path, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {f"{path}.weight" for path in linear} <= names
    assert not any(word in each for each in names for word in ("bias", "norm", "position", "scale", "shift"))


def network_of(name) -> torch.nn.Module:
    return DEEP[name].model.build(4, LOOKBACK, complete_params(DEEP[name], {}))


def layers(name) -> list:
    return list(network_of(name).modules())


def test_l1_leaves_weights_at_0_and_weight_decay_makes_them_smaller():
    """What the penalties of the search space do to a network over an ordinary number of steps."""
    plain, sparse, small = (
        network_weights(fitted("nbeats", hidden_size=64, **params))
        for params in ({}, {"l1": max(DEEP["nbeats"].space["l1"])}, {"weight_decay": 10.0})
    )
    assert (plain == 0).mean() == 0
    assert (sparse == 0).mean() > 0.02
    assert np.abs(small).mean() < 0.95 * np.abs(plain).mean()


def network_weights(model) -> np.ndarray:
    return np.concatenate([array.ravel() for name, array in model.state().items() if name.endswith("weight")])


# What is known of a fit.


def test_the_epochs_of_a_fit_are_in_its_state_and_saved(tmp_path):
    model = fitted("dlinear", budget=Budget(max_epochs=3))
    num, best = model.state()[EPOCHS]
    assert (model.state()[EPOCHS].dtype, num) == (np.int64, 3)
    assert 1 <= best <= num
    model.save(tmp_path)
    loaded = DEEP["dlinear"].model.load(tmp_path)
    np.testing.assert_array_equal(loaded.state()[EPOCHS], [num, best])
    loaded.update(labelled(220, 300), seed=2, budget=Budget())
    np.testing.assert_array_equal(loaded.state()[EPOCHS], [num, best])


def test_noise_stops_a_fit_early_and_skill_does_not():
    noise = toy_panel(memory=0.0, seed=3)
    num, best = fitted("nbeats", panel=noise, budget=Budget(), hidden_size=64).state()[EPOCHS]
    assert num == best + PATIENCE < Budget().max_epochs
    slow = fitted("dlinear", budget=Budget(max_epochs=10), learning_rate=1e-4).state()[EPOCHS]
    np.testing.assert_array_equal(slow, [10, 10])


# Scaling.


def test_rows_scaled_before_they_are_shared_are_those_scaled_after():
    x = PANEL.x_TNF.copy()
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    x[100:120, 1] = np.nan
    part = dataclasses.replace(labelled(40, 160), x_TNF=x[40 - LOOKBACK + 1 : 160])
    model = fitted()
    model._scaler = Scaler.fit(part.x_TNF.reshape(-1, 4))
    for is_labelled in (True, False):
        after, before = sequence_samples(part, labelled=is_labelled), model._samples(part, labelled=is_labelled)
        np.testing.assert_array_equal(before.x_SLF, model._scaler.transform(after.x_SLF))
        np.testing.assert_array_equal(before.index_S2, after.index_S2)
        np.testing.assert_array_equal(before.y_S, after.y_S)


# Devices.


@every_network
def test_auto_and_cpu_agree_where_there_is_no_gpu(name):
    if torch.cuda.is_available():
        pytest.skip("auto takes the GPU that is here")
    auto, cpu = (fitted(name, budget=Budget(max_epochs=1, device=device)) for device in ("auto", "cpu"))
    assert digest(auto) == digest(cpu)


def test_a_gpu_that_is_not_there_fails_the_fit():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to force here")
    with pytest.raises(ModelError, match="sees no GPU here; take 'auto' or 'cpu'"):
        fitted(budget=Budget(max_epochs=1, device="cuda"))
    model = fitted()
    before = digest(model)
    with pytest.raises(ModelError, match="sees no GPU"):
        model.update(labelled(220, 300), seed=1, budget=Budget(device="cuda"))
    assert digest(model) == before


@every_network
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_fitted_on_a_gpu_is_saved_and_scores_on_the_cpu(name, tmp_path):
    model = fitted(name, budget=Budget(max_epochs=2, device="cuda"))
    model.save(tmp_path)
    assert all(array.dtype.kind in "fi" for array in model.state().values())
    part = window(PANEL, 212, 300, lookback=LOOKBACK)
    np.testing.assert_array_equal(DEEP[name].model.load(tmp_path).predict(part), model.predict(part))
    cpu = fitted(name, budget=Budget(max_epochs=2, device="cpu"))
    assert np.corrcoef(model.predict(part).ravel(), cpu.predict(part).ravel())[0, 1] > 0.5


# Learning between refits; what every such model owes is in test_update.py.


@every_network
def test_every_network_learns_between_refits(name):
    assert isinstance(new_model(name), OnlineModel)


@pytest.mark.parametrize(("num_targets", "steps_an_epoch"), [(3, 1), (40, 4)])
def test_an_update_takes_a_few_small_steps_the_fewer_the_less_is_new(num_targets, steps_an_epoch, monkeypatch):
    asked = {}

    def spy(network, learn, check, *, deadline, **settings):
        asked.update(settings, num=len(learn.y_S), num_checked=len(check.y_S), deadline=deadline)
        return train(network, learn, check, deadline=deadline, **settings)

    train = sequence.train_network
    model = fitted()
    monkeypatch.setattr(sequence, "train_network", spy)
    model.update(labelled(220, 220 + num_targets), seed=2, budget=Budget())
    assert asked["num"] == 6 * num_targets
    assert (asked["num_checked"], asked["budget"].max_epochs) == (0, UPDATE_EPOCHS)
    assert asked["learning_rate"] == pytest.approx(0.5 * 1e-3)
    assert -(-asked["num"] // asked["batch_size"]) == steps_an_epoch
    assert asked["batch_size"] == UPDATE_BATCH
    model.update(labelled(220, 300), seed=2, budget=Budget(max_epochs=2))
    assert asked["budget"].max_epochs == 2


def test_an_update_keeps_the_scaling_of_the_fit():
    model = fitted()
    before = model.state()
    wider = dataclasses.replace(PANEL, x_TNF=10 * PANEL.x_TNF)
    model.update(labelled(220, 300, panel=wider), seed=2, budget=Budget())
    for name, array in model.state().items():
        assert np.array_equal(array, before[name]) == (not name.startswith("network."))
