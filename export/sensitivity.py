"""How much an error in each projection's output moves the embeddings: what int8 may be careless with, and what not."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.quantization import Array, groups, parts
from bgem3.export.weights import GRAPH_NAMES

N_TEXTS = 12
MAX_LENGTH = 256  # tokens of a text; the gradients' memory grows with it


def output_sensitivities(checkpoint: Checkpoint, texts: list[str], *, show_progress: bool = False) -> dict[str, Array]:
    """Measure, by projection, the mean squared gradient (N,) of the embeddings at each channel of its output.

    A white error of variance ``v_n`` in channel n moves a text's embeddings by ``sum(v_n * sensitivity_n)``, to first
    order. Each text is one backward pass from a random vector of signs, whose squared product with a Jacobian has
    the squared norm of its columns as expectation (Hutchinson, 1990, doi:10.1080/03610919008812866).

    Parameters
    ----------
    texts : some of them are taken, evenly spaced, and cut after 256 tokens or the model's maximum; empty
        ones have nothing to say
    """
    texts = [text for text in texts if text.strip()] or texts
    chosen = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, N_TEXTS).astype(np.int64))]
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, Array] = {}
    n_tokens = 0
    with _hooks(checkpoint, sums), torch.enable_grad():
        for text in tqdm(chosen, desc="sensitivity", unit="text", disable=not show_progress):
            n_tokens += _backward(checkpoint, text, generator)
    return {name: np.asarray(values / n_tokens, np.float32) for name, values in sums.items()}


def _backward(checkpoint: Checkpoint, text: str, generator: torch.Generator) -> int:
    """Send random signs from all embeddings of a text back through the model; return its number of tokens."""
    model = checkpoint.model
    ids = torch.tensor([checkpoint.token_ids(text, min(MAX_LENGTH, checkpoint.spec.max_length))])
    words = model.backbone.embeddings.word_embeddings(ids).requires_grad_()
    positions = torch.arange(ids.shape[1])[None] + checkpoint.spec.pad_id + 1
    inputs = {"inputs_embeds": words, "position_ids": positions, "attention_mask": torch.ones_like(ids)}
    states = model.backbone(**inputs).last_hidden_state[0]  # (T, D)
    outputs = [normalize(states[0], dim=-1) * len(states) ** 0.5]  # counts as much as the tokens' vectors together
    if model.colbert_linear is not None:
        outputs.append(normalize(model.colbert_linear(states), dim=-1))
    if model.sparse_linear is not None:
        sparse = model.sparse_linear(states)  # (T, 1)
        outputs.append(sparse / (sparse.detach().std() + 1e-6))
    signs = [torch.randint(0, 2, output.shape, generator=generator) * 2 - 1 for output in outputs]
    torch.stack([(sign * output).sum() for sign, output in zip(signs, outputs, strict=True)]).sum().backward()
    return len(states)


@contextmanager
def _hooks(checkpoint: Checkpoint, sums: dict[str, Array]) -> Iterator[None]:
    """Add up the squared gradients at the projections' outputs."""
    modules = {_graph_name(name): module for name, module in checkpoint.model.named_modules()}
    handles = []
    for part in (part for group in groups(checkpoint.spec) for part in parts(group)):

        def hook(module: torch.nn.Module, inputs: object, output: torch.Tensor, part: str = part) -> None:
            def add(gradient: torch.Tensor) -> None:
                sums[part] = sums.get(part, np.float32(0)) + gradient.flatten(0, -2).square().sum(0).numpy()

            output.register_hook(add)

        handles.append(modules[part].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _graph_name(module: str) -> str:
    for found, replacement in GRAPH_NAMES.items():
        module = module.replace(found, replacement)
    return module
