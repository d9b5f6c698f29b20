"""Stored rows as float32, which all scores are computed in."""

import numpy as np
from numpy.typing import NDArray

ROWS_PER_STEP = 128  # converted at once: the steps' arrays stay in the cache


def as_float32(
    stored: NDArray[np.floating] | NDArray[np.int8], scales: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return (N, D) rows as float32: the array itself if it is float32, else a new one.

    Parameters
    ----------
    stored : (N, D) array of floats, or of int8
    scales : (N,) float32 array that int8 rows are multiplied by

    Examples
    --------
    >>> import numpy as np
    >>> as_float32(np.array([[0.5, -2.0**-24]], np.float16)).tolist()
    [[0.5, -5.960464477539063e-08]]
    >>> as_float32(np.array([[127, -1]], np.int8), np.array([0.5], np.float32)).tolist()
    [[63.5, -0.5]]
    """
    if stored.dtype == np.float32:
        return stored  # type: ignore[return-value]
    wide = np.empty(stored.shape, np.float32)
    for start in range(0, len(stored), ROWS_PER_STEP):
        step = slice(start, start + ROWS_PER_STEP)
        if scales is not None:
            np.multiply(stored[step], scales[step, None], out=wide[step], dtype=np.float32)
        elif stored.dtype == np.float16:
            _widen(np.ascontiguousarray(stored[step]), wide[step])
        else:
            wide[step] = stored[step]
    return wide


def _widen(halves: NDArray[np.float16], wide: NDArray[np.float32]) -> None:
    """Write float16 as float32, exactly; several times as fast as NumPy's cast where that is not vectorised.

    A float16's exponent and fraction, moved to a float32's place, give the number divided by 2**(127 - 15).
    """
    bits = halves.view(np.int16)
    if (bits & 0x7FFF).max(initial=0) >= 0x7C00:  # infinite or NaN
        wide[:] = halves
        return
    words = wide.view(np.int32)
    words[:] = bits  # sign extended
    np.left_shift(words, 13, out=words)
    np.bitwise_and(words, np.int32(-0x70002000), out=words)  # 0x8fffe000: the sign and the 15 bits moved
    np.multiply(wide, np.float32(2.0**112), out=wide)
