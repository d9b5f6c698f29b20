"""The tokenizer of a checkpoint, and the ids of its special tokens."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import XLMRobertaConfig

from bgem3.runtime import tokenizer as runtime_tokenizer
from bgem3.runtime.hub import CheckpointError


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer.json without the padding and truncation stored in it.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or the checkpoint's own code makes its tokenizer.
    """
    _check_tokenizer_code(folder)
    try:
        return runtime_tokenizer.load_tokenizer(folder / "tokenizer.json")
    except ValueError as error:
        raise CheckpointError(
            f"cannot read the tokenizer in {folder}: tokenizer.json {error}; get the checkpoint again"
        ) from error


def special_ids(folder: Path, tokenizer: Tokenizer, config: XLMRobertaConfig) -> dict[str, int]:
    """Return ``cls_id``, ``pad_id``, ``eos_id`` and ``unk_id``.

    Raises
    ------
    CheckpointError
        If an id is missing, two are equal, or tokenizer.json and config.json disagree.
    """
    path = folder / "tokenizer.json"
    around = tokenizer.encode("").ids
    swapped = [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<s>")]
    if len(around) != 2 or around == swapped:
        raise CheckpointError(
            f"{path} does not put CLS before and EOS after a text: an empty one becomes "
            f"{[tokenizer.id_to_token(token_id) for token_id in around]}; save the tokenizer again with the "
            "post-processor of XLM-RoBERTa (TemplateProcessing '<s> $A </s>')"
        )
    _check_pad_id(folder, config, tokenizer.token_to_id("<pad>"))
    unk_id = _unknown_id(tokenizer)
    if unk_id is None:
        raise CheckpointError(f"{path} has no token for unknown words (<unk>); save the tokenizer again with one")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, more than config.json's vocab_size {config.vocab_size}; "
            "use the tokenizer and config.json of one checkpoint"
        )
    ids = {"cls_id": around[0], "pad_id": config.pad_token_id, "eos_id": around[1], "unk_id": unk_id}
    if len(set(ids.values())) < len(ids):
        raise CheckpointError(f"{path} gives special tokens the ids {ids}, expected four different ones; save it again")
    return ids


def _check_tokenizer_code(folder: Path) -> None:
    """Raise CheckpointError if the tokenizer is a class of the checkpoint's own code, which is never run.

    The rest of tokenizer_config.json has no effect, and the file may be missing or damaged.
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


def _check_pad_id(folder: Path, config: XLMRobertaConfig, named_pad_id: int | None) -> None:
    pad_id = config.pad_token_id
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


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of unknown words; a Unigram tokenizer stores the id, other models store the token."""
    model = json.loads(tokenizer.to_str())["model"]
    unk_id: int | None = model.get("unk_id")
    if unk_id is None:
        unk_id = tokenizer.token_to_id(model.get("unk_token") or "<unk>")
    return unk_id
