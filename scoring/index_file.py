"""The ``index.json`` of a saved folder: read, with every value checked before it is used."""

import json
import os
import re
from pathlib import Path
from typing import Any

from bgem3.scoring.stored_arrays import DAMAGED

VERSION = 1  # the ``format`` of an index
LARGEST = 64 << 20  # bytes of an index; a million parts take less
PART = re.compile(r"part-[0-9a-f]{12}")  # no such name leads out of the folder


def read_index(path: Path, kind: str) -> dict[str, Any]:
    """Return an index of the expected kind, whose ``parts`` are distinct names of sub-folders.

    Raise FileNotFoundError if there is none, and ValueError if it is damaged or of another kind or format.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path} is a link to {os.readlink(path)}, which is not there; bring it back, or save to a new folder"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} is not a saved {kind}: it has no {path.name}")
    if not path.is_file():  # opening a pipe would wait for ever
        raise _error(path, kind, "it is no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise _error(path, kind, f"it has more than {LARGEST} bytes")
    try:
        index = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise _error(path, kind, f"it is no JSON in UTF-8 ({error})") from error
    if not isinstance(index, dict):
        raise _error(path, kind, f"expected an object, found {index!r:.80}")
    found_format, found_kind = _value(path, kind, index, "format", int), _value(path, kind, index, "kind", str)
    if (found_format, found_kind) != (VERSION, kind):
        raise ValueError(
            f"{path.parent} holds {found_kind[:80]} of format {found_format!s:.80}, expected {kind} of format {VERSION}"
        )
    parts = index.get("parts")
    if not isinstance(parts, list) or not all(isinstance(name, str) and PART.fullmatch(name) for name in parts):
        raise _error(path, kind, f"it lists the parts {parts!r:.80}, expected names like 'part-0123456789ab'")
    if len(set(parts)) < len(parts):
        raise _error(path, kind, f"it lists a part twice, found {parts!r:.200}")
    return index


def check_number(index: dict[str, Any], name: str, expected: int, where: Path) -> None:
    """Raise ValueError if a count in an index differs from the count in its parts."""
    found = index.get(name)
    if type(found) is not int or found != expected:
        raise ValueError(f"{where}: its index has {name} = {found!r:.80}, its parts have {expected}; {DAMAGED}")


def _value(path: Path, kind: str, index: dict[str, Any], name: str, expected: type) -> Any:
    """Return a value of an index, or raise ValueError if it is not of the expected type."""
    if type(index.get(name)) is not expected:  # isinstance would take True for an int
        found = repr(index[name])[:80] if name in index else "nothing"
        raise _error(path, kind, f"its {name!r} must be of type {expected.__name__}, found {found}")
    return index[name]


def _error(path: Path, kind: str, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: {what}; save the {kind} again, to a new folder")
