"""Each allocation of an operator fails in turn. `test_builds` runs this file on a build that counts allocations."""

import ctypes
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from tests.kernels.operators import KERNELS, LIBRARY, Array, attend, linear

rng = np.random.default_rng(0)
int8_weight = rng.integers(-128, 128, (70, 30)).astype(np.int8)
rows, bias, smoothing = (rng.random(shape, np.float32) for shape in ((7, 70), 30, 70))


def error_of(run: Callable[[str], Array], kernels: str) -> Exception | None:
    """Return what a run raises: ONNX Runtime's errors, which have several types."""
    try:
        run(kernels)
    except Exception as error:
        return error.with_traceback(None)
    return None


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "run",
    [
        lambda kernels: linear(rows, int8_weight, kernels, bias=bias, smoothing=smoothing),
        lambda kernels: linear(rows, int8_weight.astype(np.float16), kernels),
        lambda kernels: attend(rows[:, :24], [0, 3, 7], 2, kernels),
    ],
    ids=["int8", "float16", "attention"],
)
def test_an_allocation_that_fails_is_reported_and_leaves_nothing_allocated(
    run: Callable[[str], Array], kernels: str
) -> None:
    library = ctypes.CDLL(str(LIBRARY))
    n_allocations = ctypes.c_int64.in_dll(library, "n_allocations")
    n_until_failure = ctypes.c_int64.in_dll(library, "n_until_failure")
    for n in itertools.count():
        n_before, n_until_failure.value = n_allocations.value, n
        error = error_of(run, kernels)
        n_registered = int(n > 0)  # the registered operators, the first allocation, are never freed
        assert n_allocations.value - n_before == n_registered
        if error is None:
            break
        assert "found no memory" in str(error)
    assert n_until_failure.value >= 0  # no allocation was left to fail
    assert n >= 2
    n_until_failure.value = -1
