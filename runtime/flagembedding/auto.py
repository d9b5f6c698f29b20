"""FlagEmbedding's class that chooses a model's class by name; only BGE-M3's is here."""

import os
from pathlib import Path
from typing import Any

from bgem3.runtime.flagembedding.arguments import Devices
from bgem3.runtime.flagembedding.model import BGEM3FlagModel

MODEL_CLASS, MODEL_NAME = "encoder-only-m3", "bge-m3"


class FlagAutoModel:
    """Drop-in for ``FlagEmbedding.FlagAutoModel``, for BGE-M3 and its fine-tunes."""

    def __init__(self) -> None:
        raise OSError("make a model with FlagAutoModel.from_finetuned(model_name_or_path)")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str | Path,
        model_class: object = None,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        devices: Devices = None,
        pooling_method: str | None = None,
        trust_remote_code: bool | None = None,
        query_instruction_format: str | None = None,
        truncate_dim: int | None = None,
        **settings: Any,
    ) -> BGEM3FlagModel:
        """Return a `BGEM3FlagModel`. The arguments are its own, and None means its default.

        Parameters
        ----------
        model_name_or_path : str or Path
            A folder, or a hub id. A hub id not named "bge-m3" needs ``model_class``.
        model_class : str, enumeration member or None
            "encoder-only-m3" or FlagEmbedding's ``EmbedderModelClass.ENCODER_ONLY_M3``.

        Raises
        ------
        ValueError
            If the model is of another class, or its name does not tell; otherwise as `BGEM3FlagModel`.
        """
        _check_class(model_name_or_path, model_class)
        return BGEM3FlagModel(
            model_name_or_path,
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format="{}{}" if query_instruction_format is None else query_instruction_format,
            devices=devices,
            pooling_method="cls" if pooling_method is None else pooling_method,
            trust_remote_code=bool(trust_remote_code),
            truncate_dim=truncate_dim,
            **settings,
        )


def _check_class(model_name_or_path: str | Path, model_class: object) -> None:
    """Raise ValueError unless the class or the name is BGE-M3's. A folder's files are checked when it is opened."""
    wanted = getattr(model_class, "value", model_class)  # FlagEmbedding's enumeration has values
    if wanted == MODEL_CLASS:
        return
    if wanted is not None:
        raise ValueError(f"model_class must be {MODEL_CLASS!r}, the class of BGE-M3, or None, found {wanted!r}")
    name = os.path.basename(os.path.normpath(model_name_or_path))
    if name != MODEL_NAME and not os.path.isdir(model_name_or_path):
        raise ValueError(
            f"FlagAutoModel opens BGE-M3 alone here, and {str(model_name_or_path)!r} is neither named {MODEL_NAME!r} "
            f"nor a folder; for a fine-tune of BGE-M3 add model_class={MODEL_CLASS!r}, for any other model use "
            "FlagEmbedding"
        )
