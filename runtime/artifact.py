"""The artifact folder: its manifest, read and checked before anything is loaded from it."""

import hashlib
import json
import os
import stat
from collections.abc import Container
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

Output = Literal["dense", "sparse", "multivector"]
OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "multivector")
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PRECISIONS = ("fp16", "fp32", "int8")
"""Precisions this version reads, the default first."""
GRAPHS = (*((precision, device) for precision in ("fp16", "fp32") for device in ("cpu", "cuda")), ("int8", "cpu"))
"""The precision and device of each graph that there may be."""
TAKEN_BY_NAME = ("reference.npz", "portable/model.onnx")
TAKEN_BESIDE_CPU_GRAPHS = ("native.onnx", "probe.onnx")
"""Files that are used wherever they are found, so the manifest must list them."""
MISSING = "copy the whole artifact folder again or export it again"
MAX_MANIFEST_BYTES = 1 << 24  # a manifest takes some 10 KB
MAX_SIZE = (1 << 31) - 1  # of a dimension or an id; ONNX Runtime's operators count in 32 bits


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
        manifest = _read_json(folder / MANIFEST)
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
        If the folder or manifest is missing or of another format version, the manifest holds something that no export
        writes, a file is missing or has the wrong size (or hash, if asked), a file that would be used is not listed,
        or a path leads out of the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(
            f"no artifact folder at {folder}; make one with `bgem3 export CHECKPOINT {folder}` or check the path"
        )
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(
            f"{folder} is not an artifact folder: it has no {MANIFEST}; make one with `bgem3 export CHECKPOINT FOLDER`"
        )
    _check_regular(path)
    try:
        manifest = _read_json(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {path} ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        help_ = pointer_help(path) or "export the checkpoint again"
        raise ArtifactError(f"{path} is not valid JSON ({error}); {help_}") from None
    return check_artifact(folder, manifest, check_hashes=check_hashes)


def check_artifact(folder: Path, manifest: Any, *, check_hashes: bool = False) -> Artifact:
    """Check a folder against a manifest; as :func:`read_artifact`, which reads the manifest from the folder."""
    if not isinstance(manifest, dict):
        raise ArtifactError(
            f"{folder / MANIFEST} holds a {type(manifest).__name__}, not an object; export the checkpoint again"
        )
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / MANIFEST} has format version {version!r:.80}, this bgem3 reads {FORMAT_VERSION}; "
            "export the checkpoint again with this version, or install the version that wrote it"
        )
    try:
        spec = _read_spec(_entry(manifest, "model", dict), _read_outputs(manifest))
        graphs = _read_graphs(_entry(manifest, "graphs", list))
        files = _read_files(_entry(manifest, "files", dict))
        _check_reports(manifest)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ArtifactError(
            f"{folder / MANIFEST} lacks an entry or has a wrong one: {what}; export the checkpoint again"
        ) from None
    unlisted = sorted({*graphs.values(), "tokenizer.json"} - files.keys())
    if unlisted:
        raise ArtifactError(f"{folder / MANIFEST} does not list {unlisted} among its files; export again")
    for name, (size, sha256) in files.items():
        _check_file(folder, name, size, sha256 if check_hashes else None)
    _check_unlisted(folder, graphs, files)
    return Artifact(folder=folder, spec=spec, graphs=graphs, manifest=manifest)


def _read_json(path: Path) -> Any:
    """Read a JSON file of some size; ValueError if it is not one, RecursionError if it is nested too deep."""
    mode, size = path.stat().st_mode, path.stat().st_size
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for its writer
        raise ValueError("it is not a regular file")
    if size > MAX_MANIFEST_BYTES:
        raise ValueError(f"it has {size} bytes, more than {MAX_MANIFEST_BYTES}")
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    json.dumps(values, ensure_ascii=False).encode()  # escapes may spell what is not Unicode
    return values


def _entry(values: Any, key: str, kind: type) -> Any:
    """Return an entry of an object; KeyError or TypeError if it is not there or of another type."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r:.80} stands where an object with {key!r} is expected")
    if type(values[key]) is not kind:
        raise TypeError(f"{key} is {values[key]!r:.80}, expected {_KINDS[kind]}")
    return values[key]


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def _read_spec(values: dict[str, Any], outputs: tuple[Output, ...]) -> ModelSpec:
    """Read the model's dimensions; KeyError, TypeError or ValueError if no model has such ones."""
    unknown = sorted(values.keys() - {field.name for field in fields(ModelSpec)})
    if unknown:
        raise ValueError(f"model has {unknown}, which this version does not know")
    for field in fields(ModelSpec):
        may_be_0 = field.name.endswith("_id") or (field.name == "multivector_size" and "multivector" not in outputs)
        value, low = values[field.name], 0 if may_be_0 else 1
        if field.type is float:
            if type(value) not in (int, float) or not 0 < value < 1:
                raise TypeError(f"{field.name} is {value!r:.80}, expected a number between 0 and 1")
        elif type(value) is not int or not low <= value <= MAX_SIZE:
            raise TypeError(f"{field.name} is {value!r:.80}, expected a whole number from {low} to {MAX_SIZE}")
    spec = ModelSpec(**values)
    if spec.hidden_size % spec.n_heads:
        raise ValueError(f"hidden_size is {spec.hidden_size}, which {spec.n_heads} heads (n_heads) do not divide")
    if spec.max_length < 2:
        raise ValueError(f"max_length is {spec.max_length}, expected at least 2: CLS and EOS")
    ids = {name: getattr(spec, name) for name in ("cls_id", "pad_id", "eos_id", "unk_id")}
    if len(set(ids.values())) < len(ids) or max(ids.values()) >= spec.vocab_size:
        raise ValueError(f"the special ids are {ids}, expected four different ones below {spec.vocab_size}")
    return spec


def _read_outputs(manifest: dict[str, Any]) -> tuple[Output, ...]:
    listed = manifest.get("outputs", OUTPUTS)
    outputs = tuple(name for name in OUTPUTS if name in listed)
    if "dense" not in outputs or list(outputs) != list(listed):
        raise TypeError(f"outputs is {listed!r:.80}")
    return outputs


def _read_graphs(entries: list[Any]) -> dict[tuple[str, str], str]:
    """Read the graphs' files by precision and device."""
    graphs: dict[tuple[str, str], str] = {}
    for entry in entries:
        precision, device, file = (_entry(entry, key, str) for key in ("precision", "device", "file"))
        if (precision, device) not in GRAPHS:
            raise ValueError(f"there is no graph of {precision!r:.80} on {device!r:.80} in this format")
        if (precision, device) in graphs:
            raise ValueError(f"graphs has {precision} on {device} twice")
        if not file.endswith(".onnx"):
            raise ValueError(f"a graph's file is {file!r:.80}, expected a name that ends in .onnx")
        graphs[precision, device] = file
    return graphs


def _read_files(entries: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """Read each file's size and SHA-256."""
    files = {}
    for name, entry in entries.items():
        size, sha256 = _entry(entry, "size", int), _entry(entry, "sha256", str)
        if size < 0 or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise ValueError(f"{name!r:.80} has size {size} and SHA-256 {sha256!r:.80}")
        files[name] = size, sha256
    return files


def _check_reports(manifest: dict[str, Any]) -> None:
    """Check what is only shown: KeyError or TypeError if it is not as an export writes it."""
    source = _entry(manifest, "source", dict)
    _entry(source, "id", str)
    if source["revision"] is not None:
        _entry(source, "revision", str)
    versions = _entry(manifest, "versions", dict)
    for name in versions:
        _entry(versions, name, str)
    parity = _entry(manifest, "parity", dict)
    for file in parity:
        report = _entry(parity, file, dict)
        published = _entry(report, "published", dict) if "published" in report else {}
        for name, value in published.items():
            if type(value) not in (int, float):
                raise TypeError(f"{name} is {value!r:.80}, expected a number")


def leads_out(name: str) -> bool:
    """Tell whether a name in a manifest or graph is anything but a plain relative path, on whatever system."""
    path = PurePosixPath(name)
    is_plain = path.parts and str(path) == name and ".." not in path.parts and not path.is_absolute()
    return not is_plain or any(character in name for character in "\\:\0")


def _check_file(folder: Path, name: str, size: int, sha256: str | None) -> None:
    path = folder / name
    if leads_out(name):
        raise ArtifactError(f"{folder / MANIFEST} names {name!r}, a path out of the folder; do not use this artifact")
    _check_regular(path)
    found = path.stat().st_size
    if found != size:
        help_ = pointer_help(path) or "copy the artifact folder again or export it again"
        raise ArtifactError(f"{path} has {found} bytes, the manifest says {size}; {help_}")
    if sha256 is not None and sha256_of(path) != sha256:
        raise ArtifactError(
            f"{path} has another SHA-256 than the manifest says; copy the artifact folder again or export it again"
        )


def _check_regular(path: Path) -> None:
    """Raise ArtifactError if a path, followed through links, is not a regular file, which can be opened at once."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ArtifactError(
                f"{path} is missing: it is a link to {os.readlink(path)}, which is not there; bring the file itself "
                "(`git annex get`, `dvc pull`), or copy the whole artifact folder again with `cp -rL`"
            ) from None
        raise ArtifactError(f"{path} is missing; {MISSING}") from None
    except OSError as error:  # no permission, a loop of links, a name that is too long
        raise ArtifactError(f"cannot read {path} ({error.strerror}); {MISSING}") from None
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{path} is not a regular file; {MISSING}")


def _check_unlisted(folder: Path, graphs: dict[tuple[str, str], str], listed: Container[str]) -> None:
    """Raise ArtifactError if a file would be used that the manifest does not list: nothing vouches for it."""
    names = [*TAKEN_BY_NAME]
    for (_, device), file in graphs.items():
        if device == "cpu":
            names += [str(PurePosixPath(file).with_name(name)) for name in TAKEN_BESIDE_CPU_GRAPHS]
    unlisted = sorted(name for name in names if name not in listed and os.path.lexists(folder / name))
    if unlisted:
        raise ArtifactError(
            f"{folder} holds {unlisted}, which {MANIFEST} does not list: nothing tells whether they belong to this "
            "artifact; remove them, or copy the artifact folder again"
        )


def pointer_help(path: Path) -> str | None:
    """Say what to do about a file that git-lfs or git-annex left in place of the real one; None for any other."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return f"it is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}"
    if start.startswith((b"/annex/objects/", b".git/annex/objects/")):
        return f"it is a git-annex pointer, not the file itself; run `git annex get` in {path.parent}"
    return None


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
