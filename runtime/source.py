"""Where a checkpoint's files are: a folder, or the hub. Needs no torch."""

import hashlib
import re
from pathlib import Path

from bgem3.runtime.artifact import sha256_of

HEAD_FILES = ("sparse_linear.pt", "colbert_linear.pt")


class CheckpointError(ValueError):
    """The checkpoint is missing, incomplete, damaged, or not of BGE-M3's form."""


def find_checkpoint(source: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Return the local folder of a whole checkpoint, downloading it if ``source`` is a hub id.

    Parameters
    ----------
    source : a folder, or a hub id such as "BAAI/bge-m3"
    cache_dir : the hub's download cache, None for its default

    Raises
    ------
    CheckpointError
        If it is neither a folder nor a model on the hub (or in the hub's local cache, when offline), or a
        file is missing: the two heads, above all, without which sparse weights and multi-vectors are random.
    """
    folder = Path(source) if Path(source).is_dir() else _download(str(source), cache_dir)
    missing = [path.name for path in checkpoint_files(folder) if not path.is_file()]
    if missing and set(missing) <= set(HEAD_FILES):
        raise CheckpointError(
            f"{source} has no {' and no '.join(missing)}: a checkpoint without its trained heads gives random sparse "
            "weights and multi-vectors; use one that has both, such as 'BAAI/bge-m3'"
        )
    if missing:
        raise CheckpointError(f"{source} has no {' and no '.join(missing)}; is it a whole BGE-M3 checkpoint?")
    return folder


def checkpoint_files(folder: Path) -> list[Path]:
    """List the files that decide what is exported; safetensors go before .bin, and one is expected."""
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    names = ("config.json", "tokenizer.json", *HEAD_FILES)
    return [*(folder / name for name in names), *(weights or [folder / "model.safetensors"])]


def checkpoint_hash(folder: Path) -> str:
    """Return one hex SHA-256 over the names and contents of the checkpoint's files."""
    digest = hashlib.sha256()
    for path in checkpoint_files(folder):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _download(hub_id: str, cache_dir: str | Path | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise CheckpointError(
            f"{hub_id} is neither a folder nor a hub id of the form owner/name; check the path, or use 'BAAI/bge-m3'"
        )
    import huggingface_hub  # half a second to import, and not needed for a local folder

    folder = Path()
    for weights in ("model*.safetensors", "pytorch_model*.bin"):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    hub_id,
                    allow_patterns=["*.json", *HEAD_FILES, weights],
                    ignore_patterns="*/*",
                    cache_dir=cache_dir,
                )
            )
        except (OSError, huggingface_hub.errors.HFValidationError) as error:
            raise CheckpointError(
                f"cannot download {hub_id} from the hub ({error}); check the id and the network, or give the "
                "checkpoint's local folder"
            ) from error
        if any(folder.glob(weights)):
            break
    return folder
