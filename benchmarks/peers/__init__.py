"""The encoders that can be measured, one file for each library."""

from benchmarks.peers import (
    bge_m3_lite,
    bgem3,
    flagembedding,
    llamacpp,
    openvino,
    optimum,
    pytorch,
    sentence_transformers,
)

MODULES = (bgem3, flagembedding, pytorch, optimum, openvino, bge_m3_lite, llamacpp, sentence_transformers)
PEERS = {peer.name: peer for module in MODULES for peer in module.PEERS}
"""Every encoder by its name; bgem3 first."""
