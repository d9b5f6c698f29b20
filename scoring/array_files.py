"""Arrays in .npz and .npy files: written without pickling, read or memory-mapped with every kind of damage refused."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
SUFFIX = ".npy"
LARGEST_EXPANSION = 100  # bounds the size of the arrays by the file's size; real embeddings compress less than 10 times
SMALLEST_BOMB = 64 << 20  # bytes; smaller arrays are read whatever their expansion, because they fit any memory


def write_npz(file: BinaryIO, arrays: Arrays) -> None:
    """Write arrays to an open file in the .npz format."""
    np.savez(file, **arrays)  # type: ignore[arg-type]


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write an array to a new .npy file."""
    with path.open("xb") as file:
        # given the file itself, NumPy would write with C's stdio and not notice a full disk
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name, or raise ValueError if it is damaged or no file of arrays.

    Nothing is unpickled, and a file that expands to far more than its size is refused.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path} is no regular file; expected an .npz file of arrays")
    arrays, name = {}, ""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if member.filename.endswith(SUFFIX)]
                _check_members(members, path.stat().st_size)
                for member in members:
                    name = f"{member.filename}: "
                    with archive.open(member) as stream:
                        arrays[member.filename.removesuffix(SUFFIX)] = _read_array(stream, member.file_size)
        except MemoryError:
            raise
        except Exception as error:  # zipfile, its decompressors and NumPy's header parser raise a dozen kinds
            what = f"{name}{error or type(error).__name__}; nothing is unpickled"
            raise ValueError(f"{path} is not a whole .npz file of arrays ({what}); save it again") from error
    return arrays


def map_npy(path: Path) -> NDArray[Any]:
    """Return a .npy file's array, memory-mapped and read-only; raise as :func:`read_npz`."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is damaged (no regular file); save it again")
    try:
        mapped = npy.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy's header parser raises whatever Python's parser raises
        raise ValueError(f"{path} is damaged ({error or type(error).__name__}); save it again") from error
    return np.asarray(mapped)  # indexing a memmap is slow


def _check_members(members: list[zipfile.ZipInfo], n_bytes: int) -> None:
    """Raise ValueError if the arrays of a file of ``n_bytes`` expand too much, or two have one name."""
    expanded = sum(member.file_size for member in members)
    if expanded > max(SMALLEST_BOMB, LARGEST_EXPANSION * n_bytes):
        raise ValueError(f"{n_bytes} bytes expand to {expanded}, more than {LARGEST_EXPANSION} times as many")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError(f"two arrays of one name among {sorted(names)}")


def _read_array(stream: IO[bytes], n_bytes: int) -> NDArray[Any]:
    """Read an array of ``n_bytes``, header included; memory is allocated only for a shape that fits these bytes."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy header of version {version}, expected 1.0 or 2.0")
    try:
        shape, _, dtype = npy.read_array_header_1_0(stream) if version[0] == 1 else npy.read_array_header_2_0(stream)
    except MemoryError as error:  # Python's parser raises it for deep nesting
        raise ValueError("a .npy header that cannot be parsed") from error
    n_expected, n_found = dtype.itemsize, n_bytes - stream.tell()
    for length in shape:
        n_expected *= int(length)
    if not dtype.hasobject and (n_expected != n_found or min(shape, default=0) < 0):
        raise ValueError(f"a {dtype} array of shape {shape}, which needs {n_expected} bytes, in {n_found}")
    stream.seek(0)
    array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    stream.read(1)  # reading to the end compares the member's checksum
    return array
