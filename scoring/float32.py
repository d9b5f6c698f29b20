"""Conversion of stored vectors to float32, in which every score is computed."""

import numpy as np
from numpy.typing import NDArray

ROWS_PER_STEP = 128  # rows converted at once; their temporary arrays fit in the L2 cache


def as_float32(
    stored: NDArray[np.floating] | NDArray[np.int8], scales: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return vectors (N, D) as float32: the array itself if it is float32, else a new one.

    ``scales`` (N,) are factors that dequantize int8 rows.

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
    converted = np.empty(stored.shape, np.float32)
    for start in range(0, len(stored), ROWS_PER_STEP):
        step = slice(start, start + ROWS_PER_STEP)
        if scales is not None:
            np.multiply(stored[step], scales[step, None], out=converted[step], dtype=np.float32)
        elif stored.dtype == np.float16:
            _convert_float16(np.ascontiguousarray(stored[step]), converted[step])
        else:
            converted[step] = stored[step]
    return converted


def _convert_float16(halves: NDArray[np.float16], out: NDArray[np.float32]) -> None:
    """Convert float16 to float32 exactly.

    Where NumPy's cast is not vectorized, this is several times faster. The exponent and fraction of a float16, moved
    to their place in a float32, give the number divided by 2**(127 - 15), because the exponents' biases differ.
    """
    bits = halves.view(np.int16)
    if (bits & 0x7FFF).max(initial=0) >= 0x7C00:  # infinite or NaN
        out[:] = halves
        return
    words = out.view(np.int32)
    words[:] = bits  # sign-extended
    np.left_shift(words, 13, out=words)
    np.bitwise_and(words, np.int32(-0x70002000), out=words)  # 0x8fffe000: the sign and the 15 moved bits
    np.multiply(out, np.float32(2.0**112), out=out)
