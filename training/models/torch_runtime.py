"""The manners torch models share: a private random state, one thread, scores that do not depend on their company."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from training.models.spec import ModelError, State

if TYPE_CHECKING:
    import torch

# Tensor suffixes: S samples, Q outputs.

CHUNK: Final = 64


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread meanwhile.

    These networks are too small to share out (on a busy machine the waiting makes them ten times slower), and a sum
    split over threads would let fits and scores depend on where they run.
    """
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """Seed torch, and give back the caller's random states of torch, numpy and Python untouched.

    The latter two are what stable-baselines3 seeds and draws from; nothing of ours does.
    """
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def score_in_chunks(
    network: Callable[[torch.Tensor], torch.Tensor], x: NDArray[np.float32], *, num_outputs: int
) -> NDArray[np.float64]:
    """Network outputs (S, Q) for inputs whose first axis is S.

    Every call has ``CHUNK`` rows, the last one padded with zeros: matrix kernels pick their order of summation by
    shape, so a free batch size would let a score depend on how many others are asked for with it.
    """
    import torch

    padding = np.zeros((-len(x) % CHUNK, *x.shape[1:]), dtype=np.float32)
    padded = torch.from_numpy(np.concatenate([x, padding]))
    with one_thread(), torch.inference_mode():
        parts = [network(chunk).double().numpy() for chunk in padded.split(CHUNK)]
    return np.concatenate([np.empty((0, num_outputs)), *parts])[: len(x)]


def tensors_state(network: torch.nn.Module) -> State:
    """The network's tensors as arrays of their own."""
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def restore_tensors(network: torch.nn.Module, state: State) -> None:
    """Load what ``tensors_state`` gave; every tensor must be there, in its shape."""
    import torch

    try:
        network.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in state.items()})
    except RuntimeError as error:
        raise ModelError(f"the saved tensors are not this network's: {error}; restore the artifact or refit") from error
