"""The artifact folder, whose manifest and files are checked before anything is loaded from it."""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bgem3.runtime.manifest import (
    PRECISIONS,
    READABLE_VERSIONS,
    GraphEntry,
    ModelSpec,
    Output,
    check_reports,
    read_files,
    read_graphs,
    read_outputs,
    read_spec,
)

MANIFEST = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
REFERENCE_FILE = "reference.npz"
WEIGHTS_FILE = "weights.bin"
"""The weights of all graphs of a folder, beside them."""

COPY_AGAIN = "copy the whole artifact folder again or export it again"
MAX_MANIFEST_BYTES = 1 << 24  # far above the 10 KB of a manifest, so that no other file is read as one


class ArtifactError(ValueError):
    """The artifact folder is missing, damaged, or of a format this version does not read."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact folder whose manifest has been checked."""

    folder: Path
    spec: ModelSpec
    graphs: tuple[GraphEntry, ...]
    manifest: dict[str, Any]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs that every graph has."""
        return read_outputs(self.manifest)

    def find_graph(self, precision: str | None, device: str, operators: str = "onnxruntime") -> GraphEntry | None:
        """Return the graph for a device, or None; ``precision=None`` takes the first of PRECISIONS that there is."""
        for candidate in PRECISIONS if precision is None else (precision,):
            for graph in self.graphs:
                if (graph.precision, graph.device, graph.operators) == (candidate, device, operators):
                    return graph
        return None

    def graph(self, precision: str | None, device: str, operators: str = "onnxruntime") -> GraphEntry:
        """Return the graph for a device as :meth:`find_graph` does, or raise ArtifactError."""
        found = self.find_graph(precision, device, operators)
        if found is None:
            there = sorted({(graph.precision, graph.device) for graph in self.graphs if graph.operators == operators})
            raise ArtifactError(
                f"{self.folder} has no graph for {precision or 'any precision'} on {device}, it has: "
                f"{', '.join(f'{precision} on {device}' for precision, device in there)}; "
                "load one of these, or export the checkpoint again with the precision you need"
            )
        return found


def verify_help(graph: Path) -> str:
    """Say how to find out what is wrong with a graph of an artifact folder."""
    return f"check the folder with `bgem3 verify {graph.parent.parent}`, or export the checkpoint again"


def is_artifact(folder: Path) -> bool:
    """Tell whether a folder holds a manifest of ours, of whatever version and state."""
    try:
        manifest = _read_json(folder / MANIFEST)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and "format_version" in manifest


def read_artifact(folder: str | Path, *, check_hashes: bool = False) -> Artifact:
    """Read the manifest and check that every file that it names is there and whole.

    Parameters
    ----------
    check_hashes : compare every file's SHA-256, too, and not only its size; this reads the whole folder

    Raises
    ------
    ArtifactError
        If the folder, its manifest or one of its files is not what an export writes.
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
    """Check a folder against a manifest, as :func:`read_artifact` does."""
    path = folder / MANIFEST
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path} holds a {type(manifest).__name__}, not an object; export the checkpoint again")
    version = manifest.get("format_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise ArtifactError(
            f"{path} has format version {version!r:.80}, this bgem3 reads {' and '.join(map(str, READABLE_VERSIONS))}; "
            "export the checkpoint again with this version, or install the version that wrote it"
        )
    try:
        spec, files = read_spec(manifest), read_files(manifest)
        graphs = read_graphs(manifest, files)
        check_reports(manifest)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ArtifactError(f"{path} lacks an entry or has a wrong one: {what}; export the checkpoint again") from None
    used = {TOKENIZER_FILE, REFERENCE_FILE, *(file for graph in graphs for file in (graph.file, graph.probe) if file)}
    unlisted = sorted(used - files.keys())
    if unlisted:
        raise ArtifactError(f"{path} does not list {unlisted} among its files; export again")
    for name, (size, sha256) in files.items():
        _check_file(folder, name, size, sha256 if check_hashes else None)
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
        raise ArtifactError(f"{path} is missing; {COPY_AGAIN}") from None
    except OSError as error:  # no permission, a loop of links, a name that is too long
        raise ArtifactError(f"cannot read {path} ({error.strerror}); {COPY_AGAIN}") from None
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{path} is not a regular file; {COPY_AGAIN}")


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
