"""ONNX Runtime's packed attention as an ONNX function, so that its CPU provider can run CUDA graphs."""

from pathlib import Path

import onnx
from onnx import helper, parser

FUNCTION_DOMAIN = "bgem3.tests"
ATTENTION = """
<opset_import: ["": {opset}], domain: "{domain}">
PackedMultiHeadAttention (query, bias, cu_seqlens) => (output)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    three = Constant <value_ints = [3]> ()
    minus_infinity = Constant <value_float = -inf> ()

    # (T, T): whether two tokens are of one text; a token's text is the number of texts that begin up to it
    shape = Shape (query)
    n_tokens = Gather (shape, zero)
    tokens = Range (zero, n_tokens, one)
    token_column = Unsqueeze (tokens, one)
    starts = Cast <to = 7> (cu_seqlens)
    begins_before = GreaterOrEqual (token_column, starts)
    counted = Cast <to = 7> (begins_before)
    first_axis = Unsqueeze (one, zero)
    text_column = ReduceSum <keepdims = 1> (counted, first_axis)
    text_row = Transpose (text_column)
    is_one_text = Equal (text_column, text_row)

    # (3, N, T, H): queries, keys and values with their bias
    query_float = Cast <to = 1> (query)
    by_part = Transpose <perm = [2, 1, 0, 3]> (query_float)
    bias_float = Cast <to = 1> (bias)
    n_heads = Shape <start = 1, end = 2> (query)
    head_size = Shape <start = 3, end = 4> (query)
    bias_shape = Concat <axis = 0> (three, n_heads, head_size)
    bias_by_head = Reshape (bias_float, bias_shape)
    bias_of_tokens = Unsqueeze (bias_by_head, two)
    biased = Add (by_part, bias_of_tokens)
    queries = Gather (biased, zero)
    keys = Gather (biased, one)
    values = Gather (biased, two)

    keys_transposed = Transpose <perm = [0, 2, 1]> (keys)
    products = MatMul (queries, keys_transposed)
    size_float = Cast <to = 1> (head_size)
    root = Sqrt (size_float)
    scores = Div (products, root)
    masked = Where (is_one_text, scores, minus_infinity)
    weights = Softmax <axis = -1> (masked)
    context = MatMul (weights, values)
    context_of_tokens = Transpose <perm = [1, 0, 2]> (context)
    rows = Flatten (context_of_tokens)
    output = CastLike (rows, query)
}}
"""


def for_cpu(path: Path, target: Path) -> Path:
    """Copy a CUDA graph to a file beside it, with its packed attention in standard operators; return ``target``.

    The function masks all tokens' scores instead of padding texts, so ``token_offset`` has no part in it.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "PackedMultiHeadAttention":
            query, _, _, bias, _, cu_seqlens = node.input
            inputs = [query, bias, cu_seqlens]
            node.CopyFrom(helper.make_node(node.op_type, inputs, node.output, node.name, domain=FUNCTION_DOMAIN))
    opset = next(opset.version for opset in model.opset_import if not opset.domain)
    model.functions.append(parser.parse_function(ATTENTION.format(opset=opset, domain=FUNCTION_DOMAIN)))
    model.opset_import.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
    target.write_bytes(model.SerializeToString())
    return target
