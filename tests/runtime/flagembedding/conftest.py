"""FlagEmbedding's class and the drop-in, opened once for all tests of this folder."""

from pathlib import Path
from typing import Any

import FlagEmbedding
import pytest

from bgem3.runtime import BGEM3FlagModel
from tests.runtime.flagembedding.comparison import SETTINGS


@pytest.fixture(scope="package")
def reference(random_checkpoint: Path) -> Any:
    """FlagEmbedding's own class over the random checkpoint, in fp32."""
    return FlagEmbedding.BGEM3FlagModel(str(random_checkpoint), **SETTINGS)


@pytest.fixture(scope="package")
def ours(random_artifact: Path) -> BGEM3FlagModel:
    """The drop-in class over the same checkpoint's artifact, in fp32."""
    return BGEM3FlagModel(random_artifact, **SETTINGS)
