"""Stacked fits: for each network what its fit alone gives, whatever it is stacked with."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.training.models.toys import learning_windows, toy_panel
from training.models import stacked
from training.models.deadline import Deadline
from training.models.deep.sequence import SequenceModel, SequenceRegressor
from training.models.fitted import FittedModel, complete_params, fit_model
from training.models.registry import architecture, architectures
from training.models.spec import EPOCHS, Budget, ModelError
from training.models.stacked import (
    FEWEST,
    LOOPED,
    QUICKER_ON_CPU,
    SHAPELESS,
    clipped,
    fit_stacked,
    is_worth_stacking,
    start_member,
    train_stacked,
)
from training.models.torch_training import LEAST_SQUARES, MAX_GRADIENT_NORM, PATIENCE, Regression
from training.models.windows import sequence_samples

CPU = torch.device("cpu")
PANEL = toy_panel(memory=0.75, num_entities=4)
LOOKBACK = 10
WINDOWS = learning_windows(PANEL, lookback=LOOKBACK)
THREE = Budget(max_epochs=3, device="cpu")
TOLERANCE = 2e-4  # of a weight after three epochs: float32 sums in another order, and Adam divides by small gradients
DEEP = sorted(name for name, each in architectures().items() if each.family == "deep")
MIXED = (
    {"learning_rate": 1e-3, "dropout": 0.1, "weight_decay": 1e-4, "l1": 1e-3},
    {"learning_rate": 5e-4, "dropout": 0.3, "weight_decay": 1e-1},
    {"learning_rate": 1e-4, "dropout": 0.0, "weight_decay": 0.0},
)


def params_of(spec, params):
    return {name: value for name, value in params.items() if name in spec.space}


def alone(name, params, *, seed, budget=THREE, windows=WINDOWS):
    spec = architecture(name)
    return fit_model(spec, params_of(spec, params), *windows, lookback=LOOKBACK, seed=seed, budget=budget)


def together(name, params_list, *, seeds, budget=THREE, windows=WINDOWS):
    spec = architecture(name)
    chosen = [params_of(spec, params) for params in params_list]
    return fit_stacked(spec, chosen, *windows, lookback=LOOKBACK, seeds=seeds, budget=budget)


def distance(one: FittedModel, other: FittedModel) -> float:
    """The largest difference of any fitted number."""
    ours, theirs = one.model.state(), other.model.state()
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


@pytest.mark.parametrize("name", DEEP)
def test_a_stacked_fit_is_the_fit_alone(name):
    """With rates, decays, dropouts, orders of batches and first weights of its own for each network."""
    singles = [alone(name, params, seed=seed) for seed, params in enumerate(MIXED)]
    members = together(name, MIXED, seeds=range(3))
    for single, member in zip(singles, members, strict=True):
        assert distance(member, single) < TOLERANCE
        assert (member.architecture, member.params, member.lookback, member.num_features) == (
            single.architecture,
            single.params,
            single.lookback,
            single.num_features,
        )
        scores, expected = (each.predict(WINDOWS[1]) for each in (member, single))
        np.testing.assert_allclose(scores.score_TN, expected.score_TN, atol=1e-3)
        np.testing.assert_allclose(scores.confidence_TN, expected.confidence_TN, atol=1e-3)


@pytest.mark.parametrize("changed", [{"learning_rate": 9e-4}, {"dropout": 0.2}, {"weight_decay": 1e-1}, {"seed": 7}])
def test_the_tolerance_tells_other_fits_apart(changed):
    base = MIXED[0] | {"seed": 0}
    other = base | changed
    members = together("nbeats", [base, other], seeds=[base["seed"], other["seed"]])
    assert distance(*members) > TOLERANCE


def test_with_the_rate_of_another_network_the_fits_are_others(monkeypatch):
    params = [MIXED[0] | {"learning_rate": 1e-2}, MIXED[0]]
    single = alone("nbeats", MIXED[0], seed=1)
    assert distance(together("nbeats", params, seeds=[1, 1])[1], single) < TOLERANCE
    monkeypatch.setattr(stacked, "_each", lambda value_K, like: value_K[0])
    assert distance(together("nbeats", params, seeds=[1, 1])[1], single) > TOLERANCE


def test_each_network_s_gradients_are_clipped_by_their_own_length():
    long, short = torch.full((4, 2), 3.0), torch.full((4, 2), 0.1)
    parts = {"weight": torch.stack([long, short]), "bias": torch.tensor([[1.0, 2.0], [0.1, 0.0]])}
    got = clipped(parts)
    for k in range(2):
        params = [torch.nn.Parameter(torch.zeros_like(each[k])) for each in parts.values()]
        for param, each in zip(params, parts.values(), strict=True):
            param.grad = each[k].clone()
        torch.nn.utils.clip_grad_norm_(params, MAX_GRADIENT_NORM)
        for param, each in zip(params, got.values(), strict=True):
            torch.testing.assert_close(each[k], param.grad)
    assert not torch.equal(got["weight"][0], long)
    assert torch.equal(got["weight"][1], short)


@pytest.mark.parametrize("name", ["dlinear", "gru", "patchtst", "tcn"])
def test_a_fit_does_not_depend_on_its_company(name):
    """Bit for bit: with two others, last of two, and asked for alone."""
    budget = Budget(max_epochs=1, device="cpu")
    three = together(name, MIXED, seeds=[0, 1, 2], budget=budget)
    two = together(name, [MIXED[2], MIXED[1]], seeds=[2, 1], budget=budget)
    (one,) = together(name, [MIXED[1]], seeds=[1], budget=budget)
    assert three[1].checksum() == two[1].checksum() == one.checksum()
    assert three[2].checksum() == two[0].checksum()


def test_a_stack_repeats_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = (
        together("gru_lstm", MIXED, seeds=[4, 5, 6], budget=Budget(max_epochs=1, device="cpu")) for _ in range(2)
    )
    assert [member.checksum() for member in first] == [member.checksum() for member in second]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_result_is_the_ordinary_model(tmp_path):
    member = together("tft", MIXED[:2], seeds=[0, 1], budget=Budget(max_epochs=1, device="cpu"))[0]
    member.save(tmp_path)
    loaded = FittedModel.load(tmp_path)
    assert type(loaded.model) is SequenceModel
    assert loaded.checksum() == member.checksum()
    np.testing.assert_array_equal(loaded.predict(WINDOWS[1]).score_TN, member.predict(WINDOWS[1]).score_TN)


def scaled(window):
    """Samples as the model would scale them, near enough: the toy's features are standard normal."""
    samples = sequence_samples(window, labelled=True)
    return Regression(x=np.clip(samples.x_SLF, -5, 5), y_S=samples.y_S)


def members_of(name, params_list, *, seeds):
    spec = architecture(name)
    return [
        start_member(spec.model, 4, LOOKBACK, complete_params(spec, params), seed=seed, device=CPU)
        for params, seed in zip(params_list, seeds, strict=True)
    ]


RATES = [{"learning_rate": rate} for rate in (3e-2, 1e-2, 5e-3)]


def test_each_network_stops_early_when_it_would_alone():
    budget = Budget(max_epochs=60, device="cpu")
    members = together("dlinear", RATES, seeds=[0, 1, 2], budget=budget)
    courses = [tuple(member.model.state()[EPOCHS]) for member in members]
    assert len(set(courses)) == 3
    assert all(num == best + PATIENCE < budget.max_epochs for num, best in courses)
    for member, params, seed in zip(members, RATES, range(3), strict=True):
        single = alone("dlinear", params, seed=seed, budget=budget)
        assert tuple(single.model.state()[EPOCHS]) == tuple(member.model.state()[EPOCHS])
        assert distance(member, single) < TOLERANCE


def test_a_penalty_leaves_weights_at_zero_in_its_own_network_alone():
    strong = {"learning_rate": 1e-3, "l1": 0.1}
    sparse, dense = together("dlinear", [strong, strong | {"l1": 0.0}], seeds=[0, 0])
    zeros = [share_of_zeros(each) for each in (sparse, dense, alone("dlinear", strong, seed=0))]
    assert zeros[0] == zeros[2] > 0.5
    assert zeros[1] == 0.0


def share_of_zeros(fitted):
    return float((fitted.model.state()["network.trend_weight_FL"] == 0).mean())


def test_without_labels_to_check_the_last_epoch_stands():
    train, valid = WINDOWS
    windows = (train, dataclasses.replace(valid, y_TN=np.full_like(valid.y_TN, np.nan)))
    budget = Budget(max_epochs=PATIENCE + 3, device="cpu")
    members = together("nhits", MIXED[:2], seeds=[0, 1], budget=budget, windows=windows)
    for params, seed, member in zip(MIXED[:2], (0, 1), members, strict=True):
        assert distance(member, alone("nhits", params, seed=seed, budget=budget, windows=windows)) < TOLERANCE
        shorter = alone(
            "nhits", params, seed=seed, budget=Budget(max_epochs=PATIENCE + 2, device="cpu"), windows=windows
        )
        assert distance(member, shorter) > TOLERANCE


@pytest.mark.parametrize("name", ["lstm", "tcn"])
def test_a_network_that_diverges_fails_alone(name):
    wild = MIXED[0] | {"learning_rate": 1e30}
    first, failed, last = together(name, [MIXED[0], wild, MIXED[1]], seeds=[0, 5, 1])
    undisturbed = together(name, MIXED[:2], seeds=[0, 1])
    assert isinstance(failed, ModelError)
    with pytest.raises(ModelError, match="diverged") as expected:
        alone(name, wild, seed=5)
    assert str(failed) == str(expected.value)
    assert [first.checksum(), last.checksum()] == [member.checksum() for member in undisturbed]


def test_all_may_diverge():
    failed = together("dlinear", [MIXED[0] | {"learning_rate": 1e38}] * 2, seeds=[0, 1])
    assert [type(each) for each in failed] == [ModelError] * 2


def test_a_deadline_that_is_over_fails_all():
    late = together("lstm", MIXED, seeds=[0, 1, 2], budget=Budget(deadline_s=0.0, device="cpu"))
    assert all(isinstance(each, ModelError) and "at a training batch of a stack" in str(each) for each in late)
    assert all("allowed are 0 s" in str(each) for each in late)


def test_a_deadline_fails_the_fits_under_way_and_no_finished_one():
    members = members_of(
        "dlinear", [{"learning_rate": 1e38}, {"learning_rate": 1e-4}, {"learning_rate": 0.1}], seeds=[0] * 3
    )
    learn, check = scaled(WINDOWS[0]), scaled(WINDOWS[1])
    seconds = iter(range(10_000))
    deadline = Deadline(Budget(deadline_s=60.0), clock=lambda: next(seconds))
    train_stacked(
        members, learn, check, budget=Budget(max_epochs=60), deadline=deadline, objective=LEAST_SQUARES, device=CPU
    )
    reasons = [str(member.failure) for member in members]
    assert "diverged" in reasons[0]
    assert "allowed are 60 s" in reasons[1]
    assert reasons[2] == "None"
    assert members[2].course.num == members[2].course.best + PATIENCE


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(ModelError, match=r"3 networks of 2 shapes cannot be stacked.*'dropout'"):
        together("transformer", [{"num_layers": 1}, {"num_layers": 2}, {}], seeds=[0, 1, 2])
    with pytest.raises(ModelError, match="lightgbm is no network"):
        together("lightgbm", [{}], seeds=[0])
    with pytest.raises(ModelError, match=r"no parameters \['leaves'\]"):
        fit_stacked(architecture("lstm"), [{"leaves": 1}], *WINDOWS, lookback=LOOKBACK, seeds=[0], budget=THREE)


def test_batch_statistics_are_refused():
    def build(num_features, lookback, params):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 1), torch.nn.BatchNorm1d(1))

    normed = dataclasses.replace(architecture("lstm"), model=SequenceRegressor(build))
    with pytest.raises(ModelError, match=r"2\.running_mean.* are not trained weights"):
        fit_stacked(normed, [{}, {}], *WINDOWS, lookback=LOOKBACK, seeds=[0, 1], budget=THREE)


def test_a_window_of_another_lookback_is_a_failure():
    (failed,) = fit_stacked(
        architecture("dlinear"), [{}], *WINDOWS, lookback=7, seeds=[0], budget=Budget(max_epochs=1, device="cpu")
    )
    assert "was cut for lookback 10, the model has 7" in str(failed)


def test_stacking_is_worth_it_by_device_and_family():
    """On a CPU for what was measured quicker alone; on a GPU for every network, if it loops over rows not for a few."""
    on_cpu = {name for name in DEEP if is_worth_stacking(architecture(name), "cpu", 18)}
    assert on_cpu == QUICKER_ON_CPU
    assert all(is_worth_stacking(architecture(name), "cuda", 18) for name in DEEP)
    assert {name for name in DEEP if not is_worth_stacking(architecture(name), "cuda", FEWEST)} == LOOPED
    for name in (*DEEP, "lightgbm"):
        assert not any(is_worth_stacking(architecture(name), device, FEWEST - 1) for device in ("cpu", "cuda"))
    assert not any(is_worth_stacking(architecture("lightgbm"), device, 18) for device in ("cpu", "cuda"))


@pytest.mark.parametrize("name", DEEP)
def test_looped_are_those_with_recurrent_layers(name):
    spec = architecture(name)
    network = spec.model.build(4, LOOKBACK, complete_params(spec, {}))
    assert (name in LOOPED) == any(isinstance(layer, torch.nn.RNNBase) for layer in network.modules())


def test_the_shapeless_parameters_leave_every_shape_as_it_is():
    for name in DEEP:
        spec = architecture(name)
        defaults = complete_params(spec, {})
        for param in set(spec.space) & SHAPELESS:
            shapes = {str(shapes_of(spec, {**defaults, param: value})) for value in spec.space[param]}
            assert len(shapes) == 1, (name, param)


def shapes_of(spec, params):
    return {each: tuple(weight.shape) for each, weight in spec.model.build(4, LOOKBACK, params).named_parameters()}
