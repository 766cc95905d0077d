"""The manners torch models share: device, random state, thread, memory, scores that don't depend on their company."""

from __future__ import annotations

import ctypes
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from training.models.spec import Device, ModelError, State

if TYPE_CHECKING:
    import torch

# Tensor suffixes: S samples, Q outputs.

CHUNK: Final = 64

# glibc's malloc.h: what ``mallopt`` sets, and the values its own rules end up with.
TRIM_THRESHOLD: Final = -1
MMAP_THRESHOLD: Final = -3
MMAP_MAX: Final = -4
USUAL_MEMORY: Final = {TRIM_THRESHOLD: 1 << 26, MMAP_THRESHOLD: 1 << 25, MMAP_MAX: 1 << 16}
KEPT_MEMORY: Final = {TRIM_THRESHOLD: (1 << 31) - 1, MMAP_MAX: 0}


def choose_device(wanted: Device) -> torch.device:
    """Where to fit: ``auto`` is the GPU where torch sees one, else the CPU."""
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ModelError(
            f"device 'cuda' was forced, but torch {torch.__version__} sees no GPU here; take 'auto' or 'cpu', or "
            "install a CUDA build of torch beside a working driver"
        )
    return torch.device("cuda" if has_gpu and wanted != "cpu" else "cpu")


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep what is freed for the next tensor meanwhile.

    glibc returns blocks beyond 32 MiB to the system as soon as they are free, and every step of a fit then waits for
    fresh, zeroed pages: of a recurrent layer over 90 bars that is half the time. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None:
        yield
        return
    for parameter, value in KEPT_MEMORY.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL_MEMORY.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


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

    The latter two are what stable-baselines3 seeds and draws from; nothing of ours does. Seeding torch seeds its GPUs.
    """
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=gpus):
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
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def restore_tensors(network: torch.nn.Module, state: State) -> None:
    """Load what ``tensors_state`` gave; every tensor must be there, in its shape."""
    import torch

    try:
        network.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in state.items()})
    except RuntimeError as error:
        raise ModelError(f"the saved tensors are not this network's: {error}; restore the artifact or refit") from error
