"""Arguments of FlagEmbedding, checked and translated into those of the runtime."""

from collections.abc import Mapping, Sequence

import numpy as np

from bgem3.runtime.device import check_device, device_number
from bgem3.runtime.manifest import PRECISIONS, ModelSpec
from bgem3.runtime.texts import check_texts

Devices = str | int | Sequence[str] | Sequence[int] | None
# keywords of FlagEmbedding's tokenizer, with the values that change no result; None stands for every value
NO_EFFECT: dict[str, tuple[object, ...] | None] = {
    "convert_to_numpy": None,  # FlagEmbedding's M3 class ignores it, too
    "pad_to_multiple_of": None,
    "verbose": None,
    "return_attention_mask": (None, True),
    "padding_side": (None, "right"),
}


def check_fixed(**given: object) -> None:
    """Raise ValueError if an argument differs from the one value that BGE-M3's graphs compute."""
    supported = {"normalize_embeddings": True, "use_bf16": False, "pooling_method": "cls"}
    for name, value in given.items():
        if value != supported[name]:
            raise ValueError(f"{name}={value!r} would change the results and is not supported; use {supported[name]!r}")


def check_sizes(spec: ModelSpec, colbert_dim: int, truncate_dim: int | None) -> None:
    """Raise ValueError if a number of dimensions is not one that the model has."""
    if colbert_dim not in (-1, 0, spec.multivector_size):
        raise ValueError(f"colbert_dim must be -1 or the head's {spec.multivector_size}, found {colbert_dim!r}")
    if truncate_dim is not None and truncate_dim not in range(1, spec.hidden_size + 1):
        raise ValueError(f"truncate_dim must be from 1 to {spec.hidden_size} or None, found {truncate_dim!r}")


def stored_precision(precision: str | None, use_fp16: bool) -> str:
    """Return the precision to load; ``use_fp16`` decides if ``precision`` is None.

    Raises
    ------
    ValueError
        If ``precision`` is unknown, or is "fp16" with ``use_fp16=False``.
    """
    if precision is None:
        return "fp16" if use_fp16 else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS} or None for use_fp16's, found {precision!r}")
    if precision == "fp16" and not use_fp16:
        raise ValueError("precision='fp16' contradicts use_fp16=False; leave one of the two out")
    return precision


def target_devices(devices: Devices, device: object = None) -> list[str]:
    """Return the names of the devices: "auto", "cpu" or "cuda:N".

    Raises
    ------
    ValueError
        If ``devices`` is not one device, or ``device`` is given, which FlagEmbedding had before 1.3.
    """
    if device is not None:
        raise ValueError(
            f"found device={device!r}, which FlagEmbedding has ignored since 1.3; use devices={str(device)!r}"
        )
    listed = ["auto"] if devices is None else [devices] if isinstance(devices, (str, int, np.integer)) else devices
    if not isinstance(listed, Sequence) or not listed or not all(map(_is_name_or_number, listed)):
        raise ValueError(f"devices must be one device ('cpu', 'cuda:N' or N) or a list of it, found {devices!r}")
    names = [name if isinstance(name, str) else f"cuda:{name}" for name in listed]
    for name in names:
        check_device(name)
    if len({(name.partition(":")[0], device_number(name)) for name in names}) > 1:
        raise ValueError(
            f"devices must be one device, found {devices!r}; to use several, make one model on each and share out "
            "the texts"
        )
    return names


def check_tokenizer_keywords(method: str, settings: Mapping[str, object]) -> None:
    """Raise TypeError for an unknown keyword of a method, and ValueError for one that would change results."""
    for name, value in settings.items():
        if name not in NO_EFFECT:
            hint = "; give devices to the constructor" if name == "device" else ""
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}{hint}")
        accepted = NO_EFFECT[name]
        if accepted is not None and value not in accepted:
            raise ValueError(f"{name}={value!r} would change the results and is not supported; leave it out")


def instruct(texts: list[str] | str, instruction: str | None, template: str) -> list[str] | str:
    """Put an instruction before each text, as a template of two places says; None leaves texts as they are."""
    if instruction is None:
        return texts
    template = template.replace("\\n", "\n")
    if isinstance(texts, str):
        return template.format(instruction, *check_texts([texts]))
    return [template.format(instruction, text) for text in check_texts(texts)]


def _is_name_or_number(device: object) -> bool:
    return isinstance(device, (str, int, np.integer)) and not isinstance(device, bool)
