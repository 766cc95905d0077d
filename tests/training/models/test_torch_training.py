import numpy as np
import torch

from training.models.deadline import Deadline
from training.models.spec import Budget
from training.models.torch_runtime import private_randomness
from training.models.torch_training import (
    LEAST_SQUARES,
    Objective,
    Regression,
    score_samples,
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
