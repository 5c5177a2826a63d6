"""The engine of OpenVINO, on CPUs. It needs no torch: its network is a graph, as `graph_cache` keeps it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clvr_model.engines import Outputs, as_outputs, openvino
from clvr_model.precision import Precision


class OpenVinoEngine:
    """A graph of `serving.openvino_graph`, an openvino.Model, compiled for this CPU."""

    def __init__(self, graph: Any, *, batch_size: int, precision: Precision, threads: int) -> None:
        self.image_size = int(graph.inputs[0].get_partial_shape()[1].get_length())
        graph.reshape([batch_size, self.image_size, self.image_size, 3])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # With pinning, two actors of one thread each share the first core.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        compiled = openvino().Core().compile_model(graph, "CPU", settings)
        lengths = [int(output.shape[1]) for output in compiled.outputs]
        self.feature_dim = lengths[0]
        self.num_logits = sum(lengths[1:])
        self._request = compiled.create_infer_request()

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""
        return as_outputs(list(self._request.infer([images], share_inputs=True).values()))
