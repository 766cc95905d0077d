from functools import cache

import numpy as np
import pytest
import torch

from training.models.deadline import Deadline
from training.models.spec import Budget
from training.models.torch_runtime import private_randomness
from training.models.torch_training import (
    BATCH,
    LEAST_SQUARES,
    LONGEST_SHRINK,
    PATIENCE,
    Epochs,
    Objective,
    Regression,
    penalised,
    score_samples,
    shrink,
    squared_error,
    train_network,
)


def least_absolute(outputs, y):
    return (outputs[:, 1] - y).abs().mean()


SECOND_BY_ABSOLUTE = Objective(loss=least_absolute, num_outputs=2, score_output=1)


def skewed(num=600, seed=0):
    rng = np.random.default_rng(seed)
    return Regression(x=np.ones((num, 1), dtype=np.float32), y_S=rng.exponential(size=num))


def trained(objective, *, learn, check, epochs=60):
    budget = Budget(max_epochs=epochs)
    with private_randomness(1):
        network = torch.nn.Linear(1, objective.num_outputs)
        train_network(
            network,
            learn,
            check,
            learning_rate=0.05,
            weight_decay=0.0,
            budget=budget,
            deadline=Deadline(budget),
            objective=objective,
        )
    return network


def test_squared_error_is_of_the_first_output():
    outputs, y = torch.tensor([[1.0, 9.0], [3.0, 9.0]]), torch.tensor([2.0, 1.0])
    assert squared_error(outputs, y).item() == (1 + 4) / 2


def test_the_score_is_the_output_the_objective_names():
    network, x = torch.nn.Linear(3, 2).eval(), np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    outputs = network(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(score_samples(network, x, objective=SECOND_BY_ABSOLUTE), outputs[:, 1], atol=1e-6)


def test_least_squares_finds_the_mean_and_least_absolutes_the_median():
    learn, check = skewed(), skewed(seed=1)
    mean, median = (
        score_samples(trained(each, learn=learn, check=check), check.x[:1], objective=each)[0]
        for each in (LEAST_SQUARES, SECOND_BY_ABSOLUTE)
    )
    assert abs(mean - 1) < 0.1
    assert abs(median - np.log(2)) < 0.1


def test_the_best_epoch_is_the_objective_s():
    """Labels whose median learning nears and whose mean it leaves: by squares the first epoch would stand."""
    check = Regression(x=skewed().x, y_S=np.r_[np.full(400, -1.0), np.full(200, 9.0)])
    learn = Regression(x=check.x, y_S=np.full(600, -1.0))
    once, long = (
        score_samples(
            trained(SECOND_BY_ABSOLUTE, learn=learn, check=check, epochs=epochs),
            check.x[:1],
            objective=SECOND_BY_ABSOLUTE,
        )[0]
        for epochs in (1, 30)
    )
    assert abs(long + 1) < 0.1 < abs(once + 1)


# When it stops.


def drawn(slope, num=400, seed=0):
    x = np.random.default_rng(seed).standard_normal((num, 3)).astype(np.float32)
    return Regression(x=x, y_S=slope * x[:, 0].astype(np.float64))


def course(learn, check, *, epochs) -> Epochs:
    budget = Budget(max_epochs=epochs)
    with private_randomness(1):
        network = torch.nn.Linear(3, 1)
        return train_network(
            network, learn, check, learning_rate=0.05, weight_decay=0.0, budget=budget, deadline=Deadline(budget)
        )


def test_it_stops_after_its_patience_and_says_which_epoch_was_best():
    """What is learned only hurts on ``check``, so the first epoch is the best one."""
    assert PATIENCE == 5
    assert course(drawn(1.0), drawn(-1.0, seed=1), epochs=30) == Epochs(num=1 + PATIENCE, best=1)
    assert course(drawn(1.0), drawn(-1.0, seed=1), epochs=4) == Epochs(num=4, best=1)


def test_it_runs_to_the_cap_while_it_learns_or_has_nothing_to_check():
    assert course(drawn(1.0), drawn(1.0, seed=1), epochs=12) == Epochs(num=12, best=12)
    nothing = Regression(x=drawn(1.0).x[:0], y_S=drawn(1.0).y_S[:0])
    assert course(drawn(1.0), nothing, epochs=12) == Epochs(num=12, best=12)


def test_a_batch_is_as_large_as_it_is_told():
    """Rows that a forward pass in training sees."""
    seen, budget = [], Budget(max_epochs=1)
    network = torch.nn.Linear(3, 1)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])) if module.training else None)
    learn = drawn(1.0, num=BATCH + 88)
    for size in (BATCH, 250):
        train_network(
            network,
            learn,
            drawn(1.0),
            learning_rate=0.01,
            weight_decay=0.0,
            budget=budget,
            deadline=Deadline(budget),
            batch_size=size,
        )
    assert seen == [BATCH, 88, 250, 250, 100]


# L1 and L2.


def orthonormal(slopes_F, num=BATCH):
    """Inputs with x'x = n I, so that every penalised least-squares problem falls apart into its coordinates."""
    normal = np.random.default_rng(0).standard_normal((num, len(slopes_F)))
    x = np.linalg.qr(normal)[0].astype(np.float32) * np.float32(num**0.5)
    return Regression(x=x, y_S=x.astype(np.float64) @ slopes_F)


SLOPES = np.array([0.8, -0.5, 0.3, 0.1, -0.02, 0.0])
STEP = 0.01


@cache
def penalised_fit(*, l1=0.0, weight_decay=0.0):
    """The slopes that a line without bias finds; an epoch is one step, and there is nothing to stop on."""
    learn, budget = orthonormal(SLOPES), Budget(max_epochs=400)
    network = torch.nn.Linear(len(SLOPES), 1, bias=False)
    torch.nn.init.constant_(network.weight, 0.2)
    with private_randomness(1):
        train_network(
            network,
            learn,
            Regression(x=learn.x[:0], y_S=learn.y_S[:0]),
            learning_rate=STEP,
            weight_decay=weight_decay,
            l1=l1,
            budget=budget,
            deadline=Deadline(budget),
        )
    return network.weight.detach().double().numpy()[0]


def test_l1_finds_the_lasso_with_exact_zeros():
    """Least mean (xw - y)^2 + l1 sum |w|: slopes nearer to 0 by l1 / 2, those within it at 0."""
    found = penalised_fit(l1=0.4)
    np.testing.assert_allclose(found, np.sign(SLOPES) * np.maximum(np.abs(SLOPES) - 0.2, 0), atol=5e-3)
    assert (found[3:] == 0).all()


def test_without_l1_nothing_is_0():
    found = penalised_fit()
    np.testing.assert_allclose(found, SLOPES, atol=5e-3)
    assert (found != 0).all()


def test_l1_and_l2_together_are_zeros_and_less():
    """Decay takes its part of what the lasso leaves, and no zero."""
    lasso, both = penalised_fit(l1=0.4), penalised_fit(l1=0.4, weight_decay=1.0)
    np.testing.assert_array_equal(both == 0, lasso == 0)
    assert (np.abs(both[:3]) < np.abs(lasso[:3])).all()
    assert (np.abs(penalised_fit(weight_decay=1.0)[:4]) < np.abs(SLOPES[:4])).all()


def test_a_subgradient_would_leave_no_zero():
    """The same problem with the penalty in the loss: why the step is a proximal one."""
    learn, weight = orthonormal(SLOPES), torch.full((1, len(SLOPES)), 0.2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=STEP, weight_decay=0.0)
    x, y = torch.from_numpy(learn.x), torch.from_numpy(learn.y_S.astype(np.float32))
    for _ in range(400):
        optimizer.zero_grad()
        (squared_error(x @ weight.T, y) + 0.4 * weight.abs().sum()).backward()
        optimizer.step()
    assert (weight != 0).all()
    assert weight[0, 3:].abs().max() < 2 * STEP


def test_l1_takes_no_step_longer_than_its_bound():
    """A weight without a gradient: in Adam's metric alone its step would have no bound."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    learn, budget = Regression(x=np.ones((10, 2), dtype=np.float32), y_S=np.zeros(10)), Budget(max_epochs=3)
    torch.nn.init.constant_(network[0].weight, 0.5)
    torch.nn.init.zeros_(network[1].weight)
    train_network(
        network, learn, learn, learning_rate=0.01, weight_decay=0.0, l1=0.1, budget=budget, deadline=Deadline(budget)
    )
    assert network[0].weight.min() >= 0.5 - 3 * 1.01 * LONGEST_SHRINK * 0.01


def test_shrinking_by_hand():
    weight = torch.tensor([[1.0, -1.0, 0.2, -0.2, 0.0]])
    torch.testing.assert_close(shrink(weight, torch.tensor(0.25)), torch.tensor([[0.75, -0.75, 0.0, 0.0, 0.0]]))
    by_weight = shrink(weight, torch.tensor([[0.0, 0.5, 0.1, 0.3, 1.0]]))
    torch.testing.assert_close(by_weight, torch.tensor([[1.0, -0.5, 0.1, 0.0, 0.0]]))


def test_neither_biases_nor_norms_are_penalised():
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.LayerNorm((2, 4)), torch.nn.GRU(4, 2), torch.nn.Conv1d(2, 2, 3)
    )
    assert set(penalised(network)) == {"0.weight", "2.weight_ih_l0", "2.weight_hh_l0", "3.weight"}
    assert set(penalised(torch.nn.Linear(3, 1))) == {"weight"}


def test_biases_find_their_place_whatever_l1():
    learn = Regression(x=np.zeros((BATCH, 2), dtype=np.float32), y_S=np.full(BATCH, 0.3))
    network, budget = torch.nn.Linear(2, 1), Budget(max_epochs=200)
    torch.nn.init.zeros_(network.bias)
    train_network(
        network, learn, learn, learning_rate=STEP, weight_decay=0.0, l1=5.0, budget=budget, deadline=Deadline(budget)
    )
    assert network.bias.item() == pytest.approx(0.3, abs=0.01)
    assert (network.weight == 0).all()
