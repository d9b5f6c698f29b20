"""BGE-M3 at run time: texts in, three kinds of embeddings and four scores out, with no torch."""

from bgem3.runtime.artifact import ArtifactError
from bgem3.runtime.cuda_provider import DeviceMemoryError
from bgem3.runtime.flagembedding import BGEM3FlagModel, FlagAutoModel
from bgem3.runtime.hub import CheckpointError
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.parity import ParityError
from bgem3.scoring import Embeddings, Scores

__all__ = [
    "ArtifactError",
    "BGEM3FlagModel",
    "BGEM3Model",
    "CheckpointError",
    "DeviceMemoryError",
    "Embeddings",
    "FlagAutoModel",
    "ParityError",
    "Scores",
]
