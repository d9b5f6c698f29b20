"""Estimate how strongly an error in the output of each projection changes the embeddings."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.quantization import Array, groups, parts
from bgem3.export.reference import evenly_spaced
from bgem3.export.weights import linear_layers

N_TEXTS = 12  # texts measured; each costs a backward pass
MAX_LENGTH = 256  # tokens of a text; the gradients' memory grows with it


def output_sensitivities(checkpoint: Checkpoint, texts: list[str], *, show_progress: bool = False) -> dict[str, Array]:
    """Return the mean squared gradient (N,) of the embeddings at each output channel of each projection.

    To first order, uncorrelated errors of variance ``v_n`` in channels n move a text's embeddings by
    ``sum(v_n * sensitivity_n)``. Each text takes one backward pass from a vector of random signs: the squared product
    of such a vector with a Jacobian has the squared norm of the Jacobian's columns as expectation (Hutchinson, 1990,
    doi:10.1080/03610919008812866). Twelve of the texts are measured, evenly spaced, without empty ones.
    """
    texts = [text for text in texts if text.strip()] or texts
    chosen = [texts[i] for i in evenly_spaced(len(texts), N_TEXTS)]
    generator = torch.Generator().manual_seed(0)
    layers = linear_layers(checkpoint.model)
    sums: dict[str, Array] = {}
    n_tokens = 0
    with ExitStack() as hooks, torch.enable_grad():
        for part in (part for group in groups(checkpoint.spec) for part in parts(group)):

            def add(module: torch.nn.Module, inputs: object, gradients: Any, part: str = part) -> None:
                sums[part] = sums.get(part, np.float32(0)) + gradients[0].flatten(0, -2).square().sum(0).numpy()

            hooks.enter_context(layers[part].register_full_backward_hook(add))
        for text in tqdm(chosen, desc="sensitivity", unit="text", disable=not show_progress):
            n_tokens += _backward(checkpoint, text, generator)
    return {name: np.asarray(values / n_tokens, np.float32) for name, values in sums.items()}


def _backward(checkpoint: Checkpoint, text: str, generator: torch.Generator) -> int:
    """Run a backward pass from random signs at all embeddings of a text, and return its number of tokens."""
    model = checkpoint.model
    ids = torch.tensor([checkpoint.token_ids(text, min(MAX_LENGTH, checkpoint.spec.max_length))])
    words = model.backbone.embeddings.word_embeddings(ids).requires_grad_()
    positions = torch.arange(ids.shape[1])[None] + checkpoint.spec.pad_id + 1
    inputs = {"inputs_embeds": words, "position_ids": positions, "attention_mask": torch.ones_like(ids)}
    states = model.backbone(**inputs).last_hidden_state[0]  # (T, D)
    outputs = [normalize(states[0], dim=-1) * len(states) ** 0.5]  # as heavy as all multi-vectors together
    if model.colbert_linear is not None:
        outputs.append(normalize(model.colbert_linear(states), dim=-1))
    if model.sparse_linear is not None:
        sparse = model.sparse_linear(states)  # (T, 1)
        outputs.append(sparse / (sparse.detach().std() + 1e-6))
    signs = [torch.randint(0, 2, output.shape, generator=generator) * 2 - 1 for output in outputs]
    torch.stack([(sign * output).sum() for sign, output in zip(signs, outputs, strict=True)]).sum().backward()
    return len(states)
