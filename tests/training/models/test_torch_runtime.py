import platform
import random
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from training.models.deadline import Deadline
from training.models.spec import Budget, ModelError
from training.models.torch_runtime import (
    CHUNK,
    choose_device,
    kept_memory,
    one_thread,
    private_randomness,
    restore_tensors,
    score_in_chunks,
    tensors_state,
)
from training.models.torch_training import Regression, score_samples, train_network


def linear(num_inputs=3, num_outputs=1, seed=0):
    with private_randomness(seed):
        return torch.nn.Linear(num_inputs, num_outputs).eval()


def regression(num=400, seed=0, slope=1.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, 3)).astype(np.float32)
    return Regression(x=x, y_S=slope * x[:, 0].astype(np.float64))


def train(network, learn, check, *, epochs=10, learning_rate=0.05):
    budget = Budget(max_epochs=epochs)
    with private_randomness(1):
        train_network(
            network,
            learn,
            check,
            learning_rate=learning_rate,
            weight_decay=0.0,
            budget=budget,
            deadline=Deadline(budget),
        )
    return network


def test_randomness_is_private_and_repeats():
    def draw():
        with private_randomness(7):
            random.seed(3)
            np.random.seed(3)  # noqa: NPY002
            return torch.rand(3).tolist()

    state = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert draw() == draw()
    assert (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()) == state  # noqa: NPY002


def test_randomness_is_given_back_after_an_error():
    state = random.getstate()
    with pytest.raises(ModelError), private_randomness(7):
        raise ModelError(str(random.seed(1)))
    assert random.getstate() == state


def test_one_thread_is_meanwhile_only():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


# Device and memory.


def test_the_device_is_the_gpu_where_there_is_one_and_the_cpu_when_forced():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to force here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match=r"'cuda' was forced, but torch .* sees no GPU here; take 'auto' or 'cpu'"):
        choose_device("cuda")


COUNT_PAGES = """
import resource

from training.models.torch_runtime import kept_memory


size = 48 << 20


def pages_faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(12):
        b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


counts = [pages_faulted()]
with kept_memory():
    counts += [pages_faulted(), resident()]
print(*counts, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")
def test_freed_memory_is_kept_meanwhile_only():
    """Blocks one after another, in a process of its own: without, each gets fresh pages; inside, the first ones."""
    asked = subprocess.run([sys.executable, "-c", COUNT_PAGES], capture_output=True, text=True, check=True)
    outside, inside, resident_inside, resident_after = map(int, asked.stdout.split())
    block = (48 << 20) // resource.getpagesize()
    assert outside >= 12 * block
    assert inside < 4 * block
    assert resident_inside - resident_after > 0.9 * block, "what was kept is given back"


def test_memory_is_as_usual_after_an_error_and_without_glibc(monkeypatch):
    with pytest.raises(ModelError), kept_memory():
        raise ModelError("a fit that failed")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with kept_memory():
        assert torch.ones(3).sum() == 3


@pytest.mark.parametrize("num", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_scores_in_chunks_are_the_network_s_own(num):
    network, x = linear(num_outputs=2), np.random.default_rng(0).standard_normal((num, 3)).astype(np.float32)
    score = score_in_chunks(network, x, num_outputs=2)
    assert (score.shape, score.dtype) == ((num, 2), np.float64)
    with torch.inference_mode():
        np.testing.assert_allclose(score, network(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_score_does_not_depend_on_its_company():
    network = torch.nn.LSTM(5, 32, batch_first=True)
    x = np.random.default_rng(0).standard_normal((200, 12, 5)).astype(np.float32)

    def last(batch):
        return network(batch)[0][:, -1]

    together = score_in_chunks(last, x, num_outputs=32)
    for first, stop in ((0, 1), (63, 66), (100, 200), (199, 200)):
        np.testing.assert_array_equal(score_in_chunks(last, x[first:stop], num_outputs=32), together[first:stop])


def test_tensors_round_trip_and_are_copies():
    network, other = linear(seed=0), linear(seed=1)
    state = tensors_state(network)
    restore_tensors(other, state)
    np.testing.assert_array_equal(other.weight.detach(), network.weight.detach())
    state["weight"][:] = 0
    assert (network.weight != 0).all()


def test_tensors_of_another_network_are_a_model_error():
    with pytest.raises(ModelError, match="not this network's"):
        restore_tensors(linear(num_inputs=3), tensors_state(linear(num_inputs=4)))


def test_training_learns_and_ends_in_evaluation_mode():
    network = train(linear(), regression(), regression(seed=1), epochs=60)
    check = regression(seed=2)
    assert np.corrcoef(score_samples(network, check.x), check.y_S)[0, 1] > 0.99
    assert not network.training


def test_training_keeps_the_epoch_best_on_check():
    """Where learning only hurts on ``check``, the first epoch stands, whatever the budget."""
    harmful = regression(seed=1, slope=-1.0)
    once, long = (train(linear(), regression(), harmful, epochs=epochs) for epochs in (1, 30))
    np.testing.assert_array_equal(long.weight.detach(), once.weight.detach())
    unlimited = train(linear(), regression(), Regression(x=harmful.x[:0], y_S=harmful.y_S[:0]), epochs=30)
    assert (unlimited.weight != once.weight).any()


def test_a_network_that_diverges_is_a_model_error():
    infinite = Regression(x=regression().x, y_S=np.full(400, np.inf))
    with pytest.raises(ModelError, match="diverged"):
        train(linear(), infinite, Regression(x=infinite.x[:0], y_S=infinite.y_S[:0]))
