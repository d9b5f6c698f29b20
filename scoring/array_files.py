"""Read arrays from .npz files and map .npy files; ValueError for a file that is damaged, whatever is wrong with it."""

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

SUFFIX = ".npy"
LARGEST_EXPANSION = 100  # times the file's size; compressed embeddings take more than a tenth of theirs
SMALLEST_BOMB = 64 << 20  # bytes; less than this is read whatever its expansion


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file, compressed or not. Nothing is unpickled.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no .npz file, is damaged, would need unpickling, or expands to far more than its size.
    """
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise ValueError(f"{path} is no regular file; expected an .npz file of arrays")
    arrays, name = {}, ""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if member.filename.endswith(SUFFIX)]
                _check_expansion(members, path.stat().st_size)
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
    """Map a .npy file, read-only; its pages are read when they are used.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or would need unpickling.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is damaged (no regular file); save it again")
    try:
        mapped = npy.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy's header parser raises what Python's own parser does
        raise ValueError(f"{path} is damaged ({error or type(error).__name__}); save it again") from error
    return np.asarray(mapped)  # memmap's own indexing is slow


def _check_expansion(members: list[zipfile.ZipInfo], n_bytes: int) -> None:
    expanded = sum(member.file_size for member in members)
    if expanded > max(SMALLEST_BOMB, LARGEST_EXPANSION * n_bytes):
        raise ValueError(f"{n_bytes} bytes expand to {expanded}, more than {LARGEST_EXPANSION} times as many")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError(f"two arrays of one name among {sorted(names)}")


def _read_array(stream: IO[bytes], n_bytes: int) -> NDArray[Any]:
    """Read an array whose file has ``n_bytes``; memory is taken only for a shape that those bytes fill."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy header of version {version}, expected 1.0 or 2.0")
    try:
        shape, _, dtype = npy.read_array_header_1_0(stream) if version[0] == 1 else npy.read_array_header_2_0(stream)
    except MemoryError as error:  # Python's parser, of deep nesting
        raise ValueError("a .npy header that cannot be parsed") from error
    n_expected, n_found = dtype.itemsize, n_bytes - stream.tell()
    for length in shape:
        n_expected *= int(length)
    if not dtype.hasobject and (n_expected != n_found or min(shape, default=0) < 0):
        raise ValueError(f"a {dtype} array of shape {shape}, which needs {n_expected} bytes, in {n_found}")
    stream.seek(0)
    array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    stream.read(1)  # at its end the member's checksum is compared
    return array
