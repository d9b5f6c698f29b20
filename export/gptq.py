"""GPTQ: rounding of weights to int8 that keeps their products, rather than each weight, close."""

import torch

from bgem3.export.quantization import LARGEST, Array, QuantizedWeight, column_scales

DAMPING = 0.3  # share of a channel's mean square added to H, so that weights do not overfit the sample of rows
BLOCK = 64  # rows rounded before their errors reach the rows after them; larger blocks save passes over the weight


def round_weight(weight: Array, rows: Array) -> QuantizedWeight:
    """Round a weight row by row, and let the later rows make up for each row's error.

    GPTQ (Frantar et al., 2023, arXiv:2210.17323): with ``H = XᵀX + d I`` and ``H⁻¹ = RᵀR``, R upper triangular, an
    error ``e`` in row k is best made up for by adding ``-e R[k, j] / R[k, k]`` to each later row j. Rows that multiply
    the largest inputs come first. Scales are those of `quantize_weight`. The weight is float32 (K, N), and ``rows``,
    float32 (R, K), are a sample of the rows X that it multiplies.
    """
    x = torch.from_numpy(rows)
    gram = x.T @ x / len(x)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    gram = gram[order][:, order]
    gram.diagonal().add_(DAMPING * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    # R is the inverse of L reversed, where L Lᵀ is H with rows and columns reversed.
    factor = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1)
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(gram)), upper=True)
    scales = torch.from_numpy(column_scales(weight))
    left = torch.from_numpy(weight)[order] / scales
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, len(left), BLOCK):
        block = slice(start, min(start + BLOCK, len(left)))
        errors = torch.zeros(block.stop - start, left.shape[1])
        for k in range(start, block.stop):
            values = left[k].round().clamp_(-LARGEST, LARGEST)
            rounded[order[k]] = values.to(torch.int8)
            errors[k - start] = (left[k] - values) / inverse[k, k]
            left[k + 1 : block.stop].addr_(inverse[k, k + 1 : block.stop], errors[k - start], alpha=-1)
        left[block.stop :].addmm_(inverse[block, block.stop :].T, errors, alpha=-1)
    return QuantizedWeight(values=rounded.numpy(), scales=scales.numpy())
