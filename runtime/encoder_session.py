"""EncoderSession: the interface of a session, the same for every device."""

from collections.abc import Callable, Iterable
from typing import Protocol

from bgem3.runtime.heads import Arrays
from bgem3.runtime.manifest import Output
from bgem3.runtime.packing import PackedBatch

CLOSED = "this model is closed; load it again with BGEM3Model.load"

Finish = Callable[[PackedBatch, Arrays], None]
"""Takes a micro-batch and its outputs. The arrays may be reused afterwards: copy what is to stay."""


class EncoderSession(Protocol):
    """Encodes micro-batches; its methods may be called from many threads at once.

    Attributes
    ----------
    device : "cpu" or "cuda:N"
    precision : in which the weights are stored
    token_budget : most tokens in a micro-batch of several texts
    """

    device: str
    precision: str
    token_budget: int

    def most_padded(self, longest: int) -> int:
        """Return how many texts of different lengths may share a micro-batch, given the longest one's tokens."""

    def run_all(self, batches: Iterable[PackedBatch], outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode micro-batches and call ``finish`` with each one and the outputs that were asked for.

        Raises
        ------
        RuntimeError, ArtifactError
            If the session is closed or ONNX Runtime fails, or an output has a wrong shape or is not finite.
        """

    def close(self) -> None:
        """Release the session's memory, as soon as the micro-batches that are running have ended."""
