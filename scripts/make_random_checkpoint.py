"""Make a checkpoint in BGE-M3's format with seeded random weights, of BGE-M3's size or smaller.

Random weights have no quality; they serve to measure size, speed, memory and parity.
"""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import XLMRobertaModel

from scripts.make_demo_checkpoint import make_config, write_tokenizer_config


def make_random_checkpoint(
    tokenizer_json: str | Path,
    folder: str | Path,
    *,
    seed: int = 0,
    hidden: int = 1024,
    layers: int = 24,
    heads: int = 16,
    intermediate: int = 4096,
    max_length: int = 8192,
    weight_std: float = 0.02,
    multivector: int | None = None,
    vocabulary: int | None = None,
) -> Path:
    """Write the checkpoint into a folder, which is made if missing; return the folder.

    Parameters
    ----------
    tokenizer_json : a tokenizer in BGE-M3's form, which is copied into the folder
    weight_std : standard deviation of the weights; a small model needs more than 0.02 to tell texts apart
    multivector : width of the multi-vectors, None for ``hidden``
    vocabulary : number of embedded tokens, at least the tokenizer's; None for the tokenizer's
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    config = make_config(
        hidden,
        layers,
        heads,
        intermediate,
        max_length,
        vocab_size=vocabulary or tokenizer.get_vocab_size(),
        pad_token_id=tokenizer.token_to_id("<pad>"),
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
        initializer_range=weight_std,
    )
    torch.manual_seed(seed)
    model = XLMRobertaModel(config, add_pooling_layer=False)
    for parameter in model.parameters():  # biases and LayerNorms, too: zeros and ones would hide mistakes
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.data.mean()), std=weight_std)
    model.save_pretrained(folder)
    for name, n_outputs in (("sparse_linear", 1), ("colbert_linear", multivector or hidden)):
        head = torch.nn.Linear(hidden, n_outputs)
        torch.save(head.state_dict(), folder / f"{name}.pt")
    if Path(tokenizer_json).resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    write_tokenizer_config(folder, max_length)
    return folder
