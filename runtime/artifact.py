"""The artifact folder: its manifest, read and checked before anything is loaded from it."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

Output = Literal["dense", "sparse", "multivector"]
OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "multivector")
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PRECISIONS = ("fp16", "fp32", "int8")
"""Precisions this version reads, the default first."""


class ArtifactError(ValueError):
    """The artifact folder is missing, damaged, or of a format this version does not read."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Dimensions and special token ids of the exported model.

    ``max_length`` counts tokens, CLS and EOS included; the ids are the checkpoint tokenizer's own.
    ``multivector_size`` is 0 where the graphs have no such output.
    """

    hidden_size: int
    n_layers: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    multivector_size: int
    max_length: int
    layer_norm_eps: float
    cls_id: int
    pad_id: int
    eos_id: int
    unk_id: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact folder whose manifest has been checked.

    ``graphs`` maps (precision, device) to the graph's path inside the folder.
    """

    folder: Path
    spec: ModelSpec
    graphs: dict[tuple[str, str], str]
    manifest: dict[str, Any]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs that every graph has; a manifest that does not list them has all three."""
        return _read_outputs(self.manifest)

    def graph(self, precision: str | None, device: str) -> tuple[str, Path]:
        """Return (precision, path) of the graph for a device; ``precision=None`` takes the first there is."""
        for candidate in PRECISIONS if precision is None else (precision,):
            if (candidate, device) in self.graphs:
                return candidate, self.folder / self.graphs[candidate, device]
        held = ", ".join(f"{p} on {d}" for p, d in sorted(self.graphs))
        wanted = f"{precision or 'any precision'} on {device}"
        raise ArtifactError(
            f"{self.folder} has no graph for {wanted}, it has: {held}; "
            "load one of these, or export the checkpoint again with the precision you need"
        )


def is_artifact(folder: Path) -> bool:
    """Tell whether a folder holds a manifest of ours, of whatever version and state."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and "format_version" in manifest


def read_artifact(folder: str | Path, *, check_hashes: bool = False) -> Artifact:
    """Read the manifest and check that every file it names is there and whole.

    Parameters
    ----------
    folder : the artifact folder
    check_hashes : compare every file's SHA-256 too, not only its size (reads the whole folder once)

    Raises
    ------
    ArtifactError
        If the folder or manifest is missing or of another format version, a file is missing or has the
        wrong size (or hash, if asked), or a path leads out of the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(
            f"no artifact folder at {folder}; make one with `bgem3 export CHECKPOINT {folder}` or check the path"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} is not an artifact folder: it has no {MANIFEST}; make one with `bgem3 export CHECKPOINT FOLDER`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is not valid JSON ({error}); export the checkpoint again") from None
    return check_artifact(folder, manifest, check_hashes=check_hashes)


def check_artifact(folder: Path, manifest: Any, *, check_hashes: bool = False) -> Artifact:
    """Check a folder against a manifest; as :func:`read_artifact`, which reads the manifest from the folder."""
    if not isinstance(manifest, dict):
        raise ArtifactError(
            f"{folder / MANIFEST} holds a {type(manifest).__name__}, not an object; export the checkpoint again"
        )
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / MANIFEST} has format version {version}, this bgem3 reads {FORMAT_VERSION}; "
            "export the checkpoint again with this version, or install the version that wrote it"
        )
    try:
        spec = _read_spec(manifest["model"])
        graphs = {(graph["precision"], graph["device"]): graph["file"] for graph in manifest["graphs"]}
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        unlisted = sorted({*graphs.values(), "tokenizer.json"} - files.keys())
        _ = (
            _read_outputs(manifest),
            manifest["source"]["id"],
            manifest["source"]["revision"],
            manifest["versions"],
            manifest["parity"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} lacks an entry or has a wrong one ({error!r}); export the checkpoint again"
        ) from None
    if unlisted:
        raise ArtifactError(f"{folder / MANIFEST} does not list {unlisted} among its files; export again")
    for name, (size, sha256) in files.items():
        _check_file(folder, name, size, sha256 if check_hashes else None)
    return Artifact(folder=folder, spec=spec, graphs=graphs, manifest=manifest)


def _read_spec(values: dict[str, Any]) -> ModelSpec:
    spec = ModelSpec(**values)
    for field in fields(spec):
        value = getattr(spec, field.name)
        if type(value) not in (int, field.type):
            raise TypeError(f"{field.name} is {value!r}")
    return spec


def _read_outputs(manifest: dict[str, Any]) -> tuple[Output, ...]:
    listed = manifest.get("outputs", OUTPUTS)
    outputs = tuple(name for name in OUTPUTS if name in listed)
    if "dense" not in outputs or list(outputs) != list(listed):
        raise TypeError(f"outputs is {listed!r}")
    return outputs


def _check_file(folder: Path, name: str, size: int, sha256: str | None) -> None:
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise ArtifactError(f"{folder / MANIFEST} names {name!r}, a path out of the folder; do not use this artifact")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; copy the whole artifact folder again or export it again")
    found = path.stat().st_size
    if found != size:
        raise ArtifactError(
            f"{path} has {found} bytes, the manifest says {size}; copy the artifact folder again or export it again"
        )
    if sha256 is not None and sha256_of(path) != sha256:
        raise ArtifactError(
            f"{path} has another SHA-256 than the manifest says; copy the artifact folder again or export it again"
        )


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
