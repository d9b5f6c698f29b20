"""A BGE-M3 checkpoint becomes an artifact folder of ONNX graphs."""

from bgem3.export.exporter import export_model
from bgem3.runtime.hub import CheckpointError
from bgem3.runtime.parity import ParityError

__all__ = ["CheckpointError", "ParityError", "export_model"]
