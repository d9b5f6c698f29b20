"""Checks of the arguments of a model's methods."""

from collections.abc import Iterable, Sequence

import numpy as np

from bgem3.runtime.manifest import OUTPUTS, Output
from bgem3.runtime.texts import check_texts, rows_of


def check_whole_number(name: str, value: object) -> None:
    """Raise ValueError unless an argument is None or a whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1 or None, found {value!r}")


def split_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return the queries and the passages of pairs; an error names the pair or text that is wrong."""
    if isinstance(pairs, str):
        raise TypeError("pairs must be a list of (query, passage), found one str")
    queries, passages = [], []
    column = "zip(table['query'], table['passage'])"
    for i, row in enumerate(rows_of(pairs, "pairs", "(query, passage)", n_dims=(1, 2), column=column)):
        pair = row.tolist() if isinstance(row, np.ndarray) else row
        if isinstance(pair, (str, bytes, bytearray)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"pair {i} must be (query, passage), two texts, found {pair!r:.80}")
        queries.append(pair[0])
        passages.append(pair[1])
    return check_texts(queries, "query"), check_texts(passages, "passage")


def check_outputs(outputs: Sequence[Output], available: tuple[Output, ...]) -> tuple[Output, ...]:
    """Return the outputs asked for, in the order of OUTPUTS; raise ValueError if one is unknown or not available."""
    wanted = tuple(outputs) if isinstance(outputs, Iterable) and not isinstance(outputs, str) else (outputs,)
    unknown = [name for name in wanted if name not in OUTPUTS]
    if unknown or not wanted:
        raise ValueError(f"outputs must be one or more of {OUTPUTS}, found {outputs!r}")
    missing = [name for name in OUTPUTS if name in wanted and name not in available]
    if missing:
        raise ValueError(
            f"this artifact was exported without {' and '.join(missing)}, it gives {' and '.join(available)} alone; "
            "export the checkpoint again with all outputs, and with heads_from='BAAI/bge-m3' (--heads-from) if it has "
            "no heads of its own"
        )
    return tuple(name for name in OUTPUTS if name in wanted)
