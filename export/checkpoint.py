"""A BGE-M3 checkpoint, from the hub or a folder, loaded and checked."""

import codecs
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import XLMRobertaConfig, XLMRobertaModel
from transformers.utils import logging

from bgem3.export.backbone import load_backbone, load_config
from bgem3.export.heads import load_head
from bgem3.export.stored_tensors import read_weights
from bgem3.runtime.artifact import OUTPUTS, ModelSpec, Output, sha256_of
from bgem3.runtime.checkpoint_files import checkpoint_files, find_checkpoint, find_heads
from bgem3.runtime.hub import CheckpointError
from bgem3.runtime.tokenizer import load_tokenizer

HEAD_FILE = {"sparse": "sparse_linear.pt", "multivector": "colbert_linear.pt"}
"""Each trained head's file, by its output; the dense one has none."""


class BGEM3Torch(torch.nn.Module):
    """The checkpoint as PyTorch modules in float32: the source of the weights and of the reference outputs.

    A head is None where its output was not asked for.
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
        """Return the outputs that there are heads for."""
        lacking = {"sparse": self.sparse_linear is None, "multivector": self.colbert_linear is None}
        return tuple(name for name in OUTPUTS if not lacking.get(name))

    def heads(self, states: torch.Tensor) -> dict[Output, torch.Tensor]:
        """Compute the outputs of one text from its last states (T, D): (D,), (T,) and (T - 1, M), all float32."""
        found: dict[Output, torch.Tensor] = {"dense": normalize(states[0], dim=-1)}
        if self.sparse_linear is not None:
            found["sparse"] = torch.relu(self.sparse_linear(states)).squeeze(-1)
        if self.colbert_linear is not None:
            found["multivector"] = normalize(self.colbert_linear(states[1:]), dim=-1)
        return found


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes
    ----------
    folder : where its files are
    model : the float32 modules, in evaluation mode
    tokenizer : its tokenizer.json as it is, but for the padding and the truncation stored there
    spec : dimensions and special ids
    source : what it was loaded from: id, revision, and the SHA-256 of each file used
    """

    folder: Path
    model: BGEM3Torch
    tokenizer: Tokenizer
    spec: ModelSpec
    source: dict[str, Any]

    def token_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Return a text's token ids, CLS and EOS included; a longer text loses its end, as tokenizers cuts it."""
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
    """Load a checkpoint in float32 and check it whole.

    Parameters
    ----------
    source : a hub id such as "BAAI/bge-m3", or a folder with config.json, tokenizer.json, the backbone
        (safetensors, or .bin read with ``weights_only=True``), sparse_linear.pt and colbert_linear.pt
    cache_dir : the hub's download cache, None for its default
    outputs : those whose heads are loaded
    heads_from : a hub id or folder whose heads' files are taken instead of the checkpoint's own

    Raises
    ------
    CheckpointError
        If a file is missing or unreadable, a tensor is missing, of the wrong shape or not finite, or the
        model is not an XLM-RoBERTa encoder with BGE-M3's settings.
    """
    wanted = {output: HEAD_FILE[output] for output in outputs if output in HEAD_FILE}
    own_heads = () if heads_from is not None else tuple(wanted.values())
    folder = find_checkpoint(source, cache_dir, own_heads)
    heads_folder = folder if heads_from is None else find_heads(heads_from, tuple(wanted.values()), cache_dir)
    config = load_config(folder / "config.json")
    tokenizer = _load_tokenizer(folder)
    special_ids = _special_ids(folder, tokenizer, config)
    tensors = read_weights(folder)
    with _quiet_transformers():
        backbone = load_backbone(folder, tensors, config)
    heads = {
        output: load_head(heads_folder / file, config.hidden_size, tensors, 1 if output == "sparse" else None)
        for output, file in wanted.items()
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
        **special_ids,
    )
    described = _source(source, folder, checkpoint_files(folder, own_heads))
    if heads_from is not None:
        described["heads_from"] = _source(heads_from, heads_folder, [heads_folder / file for file in wanted.values()])
    return Checkpoint(folder=folder, model=model, tokenizer=tokenizer, spec=spec, source=described)


def read_tokenizer_file(folder: Path) -> bytes:
    """Return the content of a checkpoint's tokenizer.json, without the byte order mark that editors put before it."""
    return (folder / "tokenizer.json").read_bytes().removeprefix(codecs.BOM_UTF8)


def _load_tokenizer(folder: Path) -> Tokenizer:
    _check_tokenizer_code(folder)
    try:
        return load_tokenizer(folder / "tokenizer.json")
    except ValueError as error:
        raise CheckpointError(
            f"cannot read the tokenizer in {folder}: tokenizer.json {error}; get the checkpoint again"
        ) from error


def _check_tokenizer_code(folder: Path) -> None:
    """Raise CheckpointError if the checkpoint's tokenizer is a class of its own code, which is never run.

    Nothing else in tokenizer_config.json matters, nor whether it is there and can be read.
    """
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8-sig"))
        name, code = settings["tokenizer_class"], str(settings["auto_map"]["AutoTokenizer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    if isinstance(name, str) and f".{name.removesuffix('Fast')}" in code:
        raise CheckpointError(
            f"cannot read the tokenizer in {folder}: tokenizer_config.json makes it with custom code ({code}), which "
            "is never run. If tokenizer.json alone gives the same tokens, take auto_map out of that file; or "
            "get the checkpoint again in a version without custom code"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence advice that does not apply."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _special_ids(folder: Path, tokenizer: Tokenizer, config: XLMRobertaConfig) -> dict[str, int]:
    """Return the ids of the special tokens by role, from tokenizer.json and, for padding, from config.json."""
    path = folder / "tokenizer.json"
    around = tokenizer.encode("").ids
    swapped = [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<s>")]
    if len(around) != 2 or around == swapped:
        raise CheckpointError(
            f"{path} does not put CLS before and EOS after a text: an empty one becomes "
            f"{[tokenizer.id_to_token(token_id) for token_id in around]}; save the tokenizer again with the "
            "post-processor of XLM-RoBERTa (TemplateProcessing '<s> $A </s>')"
        )
    pad_id, named_pad_id = config.pad_token_id, tokenizer.token_to_id("<pad>")
    if type(pad_id) is not int or named_pad_id not in (None, pad_id):
        raise CheckpointError(
            f"{folder}: the tokenizer's pad id is {named_pad_id}, config.json's is {pad_id}; "
            "positions depend on it, so the two must agree"
        )
    if not 0 <= pad_id < min(config.vocab_size, config.max_position_embeddings - 2):
        raise CheckpointError(
            f"{folder}: config.json's pad_token_id is {pad_id}, beyond its vocab_size {config.vocab_size} or its "
            f"{config.max_position_embeddings} positions; get the checkpoint again"
        )
    unk_id = _unknown_id(folder, tokenizer)
    if unk_id is None:
        raise CheckpointError(f"{path} has no token for unknown words (<unk>); save the tokenizer again with one")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise CheckpointError(f"{path} has {tokenizer.get_vocab_size()} tokens, the model embeds {config.vocab_size}")
    ids = {"cls_id": around[0], "pad_id": pad_id, "eos_id": around[1], "unk_id": unk_id}
    if len(set(ids.values())) < len(ids):
        raise CheckpointError(f"{path}: the special tokens' ids are {ids}, expected four different ones")
    return ids


def _unknown_id(folder: Path, tokenizer: Tokenizer) -> int | None:
    """Return the id of what the tokenizer's model does not know; Unigram names the id, other models the text."""
    model = json.loads(read_tokenizer_file(folder))["model"]
    unk_id: int | None = model.get("unk_id")
    if unk_id is None:
        unk_id = tokenizer.token_to_id(model.get("unk_token") or "<unk>")
    return unk_id


def _source(source: str | Path, folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    is_hub_id = not Path(source).is_dir()
    return {
        "id": str(source) if is_hub_id else folder.resolve().name,
        "revision": folder.name if is_hub_id else None,  # a hub snapshot's folder is named after its commit
        "files": {path.name: sha256_of(path) for path in files if path.is_file()},
    }
