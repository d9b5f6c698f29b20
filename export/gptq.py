"""Rounding of weights to int8 by what it does to products, not to each weight alone."""

import torch

from bgem3.export.quantization import LARGEST, Array, QuantizedWeight, column_scales

DAMPING = 0.3  # of the mean square of a channel: what keeps a sample of rows from being believed too much
BLOCK = 64  # rows of a weight that are rounded before the others hear of it


def round_weight(weight: Array, rows: Array) -> QuantizedWeight:
    """Round a weight (K, N) row by row, spreading each row's error over the rows that are still to come.

    GPTQ (Frantar et al., 2023, arXiv:2210.17323): with ``H = XᵀX + d I`` and ``H⁻¹ = RᵀR``, R upper triangular,
    rounding row k off by ``e`` is best made up for by adding ``-e R[k, j] / R[k, k]`` to each later row j. Rows that
    are multiplied by the largest inputs come first. Scales are those of `quantize_weight`.

    Parameters
    ----------
    rows : float32 (R, K), a sample of what the weight is multiplied by
    """
    x = torch.from_numpy(rows)
    gram = x.T @ x / len(x)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    gram = gram[order][:, order]
    gram.diagonal().add_(DAMPING * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    # Of H with its rows and columns reversed, L Lᵀ, R is the inverse of L reversed back.
    factor = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1)
    spread = torch.linalg.solve_triangular(factor, torch.eye(len(gram)), upper=True)
    scales = torch.from_numpy(column_scales(weight))
    left = torch.from_numpy(weight)[order] / scales
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, len(left), BLOCK):
        block = slice(start, min(start + BLOCK, len(left)))
        errors = torch.zeros(block.stop - start, left.shape[1])
        for k in range(start, block.stop):
            values = left[k].round().clamp_(-LARGEST, LARGEST)
            rounded[order[k]] = values.to(torch.int8)
            errors[k - start] = (left[k] - values) / spread[k, k]
            left[k + 1 : block.stop].addr_(spread[k, k + 1 : block.stop], errors[k - start], alpha=-1)
        left[block.stop :].addmm_(spread[block, block.stop :].T, errors, alpha=-1)
    return QuantizedWeight(values=rounded.numpy(), scales=scales.numpy())
