"""FlagEmbedding's classes over bgem3: the same arguments and outputs, from ONNX graphs."""

from bgem3.runtime.flagembedding.auto import FlagAutoModel
from bgem3.runtime.flagembedding.model import BGEM3FlagModel

__all__ = ["BGEM3FlagModel", "FlagAutoModel"]
