"""A BGE-M3 checkpoint, from the hub or a folder, loaded and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import XLMRobertaModel

from bgem3.export.backbone import load_backbone, load_config
from bgem3.export.heads import load_head
from bgem3.export.stored_tensors import read_weights
from bgem3.export.tokenizer import load_tokenizer, special_ids
from bgem3.runtime.artifact import sha256_of
from bgem3.runtime.checkpoint_files import HEADS, checkpoint_files, find_checkpoint, find_heads
from bgem3.runtime.hub import CheckpointError
from bgem3.runtime.manifest import OUTPUTS, ModelSpec, Output


class BGEM3Torch(torch.nn.Module):
    """The checkpoint's modules in float32: the source of the weights and of the reference outputs.

    A head is None if its output was not asked for.
    """

    def __init__(
        self,
        backbone: XLMRobertaModel,
        sparse_linear: torch.nn.Linear | None,
        colbert_linear: torch.nn.Linear | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sparse_linear = sparse_linear
        self.colbert_linear = colbert_linear

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs that the model can compute."""
        lacking = {"sparse": self.sparse_linear is None, "multivector": self.colbert_linear is None}
        return tuple(name for name in OUTPUTS if not lacking.get(name))

    def heads(self, states: torch.Tensor) -> dict[Output, torch.Tensor]:
        """Compute the float32 outputs (D,), (T,) and (T - 1, M) of one text from its last states (T, D)."""
        found: dict[Output, torch.Tensor] = {"dense": normalize(states[0], dim=-1)}
        if self.sparse_linear is not None:
            found["sparse"] = torch.relu(self.sparse_linear(states)).squeeze(-1)
        if self.colbert_linear is not None:
            found["multivector"] = normalize(self.colbert_linear(states[1:]), dim=-1)
        return found


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint."""

    folder: Path  # holds the checkpoint's files
    model: BGEM3Torch  # in evaluation mode
    tokenizer: Tokenizer  # without the padding and truncation stored in tokenizer.json
    spec: ModelSpec
    source: dict[str, Any]  # id, revision, and the SHA-256 of each file used

    def token_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Return a text's token ids with CLS and EOS; the end of a longer text is cut off."""
        if max_length is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(max_length)
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def load_checkpoint(
    source: str | Path,
    cache_dir: str | Path | None = None,
    *,
    outputs: Sequence[Output] = OUTPUTS,
    heads_from: str | Path | None = None,
) -> Checkpoint:
    """Load a whole checkpoint in float32 and check it.

    Parameters are those of `bgem3.export.export_model`. The files are config.json, tokenizer.json, the backbone
    (safetensors, or .bin read with ``weights_only=True``), and the heads that ``outputs`` needs.

    Raises
    ------
    CheckpointError
        If a file is missing or unreadable, a tensor is missing, misshapen or not finite, or the model is not an
        XLM-RoBERTa encoder with BGE-M3's settings.
    """
    files = {output: HEADS[output] for output in outputs if output in HEADS}
    own_heads = () if heads_from is not None else tuple(files.values())
    folder = find_checkpoint(source, cache_dir, own_heads)
    heads_folder = folder if heads_from is None else find_heads(heads_from, tuple(files.values()), cache_dir)
    config = load_config(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    ids = special_ids(folder, tokenizer, config)
    tensors = read_weights(folder)
    backbone = load_backbone(folder, tensors, config)
    heads = {
        output: load_head(heads_folder / file, config.hidden_size, tensors, 1 if output == "sparse" else None)
        for output, file in files.items()
    }
    model = BGEM3Torch(backbone, heads.get("sparse"), heads.get("multivector")).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: tensor {name} holds NaN or infinity; get the checkpoint again")
    spec = ModelSpec(
        hidden_size=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        multivector_size=heads["multivector"].out_features if "multivector" in heads else 0,
        max_length=config.max_position_embeddings - config.pad_token_id - 1,
        layer_norm_eps=config.layer_norm_eps,
        **ids,
    )
    described = _source(source, folder, checkpoint_files(folder, own_heads))
    if heads_from is not None:
        described["heads_from"] = _source(heads_from, heads_folder, [heads_folder / file for file in files.values()])
    return Checkpoint(folder=folder, model=model, tokenizer=tokenizer, spec=spec, source=described)


def _source(source: str | Path, folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    is_hub_id = not Path(source).is_dir()
    return {
        "id": str(source) if is_hub_id else folder.resolve().name,
        "revision": folder.name if is_hub_id else None,  # a hub snapshot's folder is named after its commit
        "files": {path.name: sha256_of(path) for path in files if path.is_file()},
    }
