"""Artifacts that the FlagEmbedding drop-in exports on first use, in the user's cache."""

import importlib
import importlib.util
import logging
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from bgem3.runtime.artifact import is_artifact
from bgem3.runtime.checkpoint_files import checkpoint_hash, find_checkpoint
from bgem3.runtime.hub import is_unwritable
from bgem3.runtime.manifest import FORMAT_VERSION

EXPORT_NEEDS = ("torch", "transformers", "onnx", "optimum", "onnxruntime")

logger = logging.getLogger(__name__)


def find_or_export(source: str | Path, precision: str, cache_dir: str | Path | None = None) -> Path:
    """Return the artifact folder for an artifact, a checkpoint folder or a hub id.

    A checkpoint is exported once, with progress bars. Its export is found again by the hash of the checkpoint's files
    (by the commit, for a hub id), so a changed checkpoint is exported anew. Processes that start at once wait for
    the first one's export.

    ``cache_dir`` is the folder for downloads and exports; None takes the hub's and the user's cache folders.

    Raises
    ------
    CheckpointError
        If the source is not a whole checkpoint, or cannot be downloaded.
    ImportError, OSError
        If an export is needed and the export extra is missing, or the folder of exports cannot be written.
    """
    if is_artifact(Path(source)):
        return Path(source)
    checkpoint = find_checkpoint(source, cache_dir)
    root = Path(cache_dir) / "bgem3" if cache_dir else user_cache_path("bgem3")
    key = checkpoint_hash(checkpoint)[:32] if Path(source).is_dir() else checkpoint.name  # the hub's commit
    target = root / f"{key}-{precision}-v{FORMAT_VERSION}"
    if is_artifact(target):
        return target
    _require_export_extra(source, precision)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not is_artifact(target):
                logger.info("exporting %s to %s, once", source, target)
                export = importlib.import_module("bgem3.export")
                export.export_model(source, target, (precision,), show_progress=True, cache_dir=cache_dir)
    except OSError as error:
        if not is_unwritable(error):
            raise
        reason = f"{error.strerror or error}; free space there, or name another folder as cache_dir"
        raise OSError(error.errno, f"exports cannot be kept in {root}: {reason}") from error
    return target


def _require_export_extra(source: str | Path, precision: str) -> None:
    missing = [name for name in EXPORT_NEEDS if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f"{source} is a checkpoint not yet exported, which needs {', '.join(missing)}: "
            f"`pip install 'bgem3[cpu,export]'`, or run `bgem3 export {source} FOLDER --precision {precision}` where "
            "they are installed and give the folder here"
        )
