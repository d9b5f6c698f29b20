"""Damaged .npz and .npy files are refused with what to do: no crash, and nothing is unpickled."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.scoring import Embeddings
from bgem3.scoring.storage import INDEX
from tests.scoring.corpus import make_embeddings
from tests.scoring.damage import N_TEXTS, part_of

START = "{'descr': '<f4', 'fortran_order': False, 'shape': "
HEADERS = {
    "nested": START + "(" * 9000,
    "huge": START + "(1000000000000,)}",
    "negative": START + "(-1, -4)}",
    "empty descr": "{'descr': (), 'fortran_order': False, 'shape': (1,)}",
    "an expression": "__import__('os').getcwd()",
}


def npy_of(header: str) -> bytes:
    """Return a .npy file with this header and 16 bytes of data."""
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + bytes(16)


def npz_of(members: dict[str, bytes], **options: Any) -> bytes:
    """Return an .npz file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def damaged_npz() -> dict[str, bytes]:
    """Return ways in which an .npz file may be wrong."""
    whole, npy, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    embeddings = make_embeddings(0, N_TEXTS)
    np.savez(whole, **embeddings._arrays())  # type: ignore[arg-type]
    np.save(npy, embeddings.dense)
    np.savez(pickled, n_tokens=np.array([{}]))
    content, value = whole.getvalue(), embeddings.dense.tobytes()[:16]
    return {
        "nothing": b"",
        "a .npy file": npy.getvalue(),
        "pickled": pickled.getvalue(),
        "half": content[: len(content) // 2],
        "a value changed": content.replace(value, bytes(16)),
        "no member": npz_of({}),
        "a member cut short": npz_of({"n_tokens.npy": npy.getvalue()[:-5]}),
        "a bomb": npz_of({"dense.npy": bytes(128 << 20)}, compression=zipfile.ZIP_DEFLATED),
    } | {f"a header, {name}": npz_of({"n_tokens.npy": npy_of(header)}) for name, header in HEADERS.items()}


DAMAGED = damaged_npz()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_npz_file_is_not_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.npz"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=r"save it again|no array 'n_tokens'") as refusal:
        Embeddings.load(path)
    assert str(refusal.value).startswith(str(path))


def test_compressed_and_fortran_ordered_arrays_are_loaded(tmp_path: Path) -> None:
    embeddings = make_embeddings(0, N_TEXTS)
    arrays: dict[str, Any] = embeddings._arrays()
    np.savez_compressed(tmp_path / "other.npz", **arrays | {"dense": np.asfortranarray(arrays["dense"])})
    np.testing.assert_array_equal(Embeddings.load(tmp_path / "other.npz").dense, embeddings.dense)


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.npz")
    for name in ("no array", "no index", "bad header"):
        make_embeddings(0, N_TEXTS).save(tmp_path / name)
    dense, index = part_of(tmp_path / "no array") / "dense.npy", tmp_path / "no index" / INDEX
    for path in (dense, index):
        path.unlink()
        os.mkfifo(path)
    (part_of(tmp_path / "bad header") / "dense.npy").write_bytes(npy_of(HEADERS["an expression"]))
    for name, message in (
        ("file.npz", "is no regular file"),
        ("no array", rf"^{dense} is damaged \(no regular file\)"),
        ("no index", rf"^{index} is damaged: it is no regular file"),
        ("bad header", r"dense.npy is damaged \("),
    ):
        with pytest.raises(ValueError, match=message):
            Embeddings.load(tmp_path / name)
