"""Captured CUDA graphs: all kernels of one short text as one launch, over device memory that stays in place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.heads import Arrays
from bgem3.runtime.manifest import Output
from bgem3.runtime.ort import import_onnxruntime

MEMORY = "cuda"  # ONNX Runtime's name for where inputs and outputs stay
NO_CAPTURE = "-1"  # as gpu_graph_id of a run


class CapturedGraph:
    """A CUDA graph for inputs and outputs of fixed shapes; its first run captures it.

    Parameters
    ----------
    number : identifies the graph in the session, from 1 on (0 is the provider's default)
    feeds : inputs, for their shapes
    shapes : shapes of the outputs
    """

    def __init__(
        self,
        session: Any,
        number: int,
        device_id: int,
        feeds: dict[str, NDArray[Any]],
        shapes: dict[Output, tuple[int, ...]],
    ) -> None:
        onnxruntime = import_onnxruntime()
        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        self._inputs = {name: allocate(values.shape, values.dtype, MEMORY, device_id) for name, values in feeds.items()}
        self._outputs = {name: allocate(shape, np.float32, MEMORY, device_id) for name, shape in shapes.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for output, value in self._outputs.items():
            self._binding.bind_ortvalue_output(output, value)

    def run(self, feeds: dict[str, NDArray[Any]]) -> Arrays:
        """Copy the inputs to the device, run, and copy the outputs back."""
        for name, values in feeds.items():
            self._inputs[name].update_inplace(values)
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: value.numpy() for name, value in self._outputs.items()}
