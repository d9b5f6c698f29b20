"""ONNX Runtime's packed attention as an ONNX function, so that its CPU provider can run CUDA graphs."""

from pathlib import Path

import onnx
from onnx import helper, parser

FUNCTION_DOMAIN = "bgem3.tests"
ATTENTION = """
<opset_import: ["": {opset}], domain: "{domain}">
PackedMultiHeadAttention (query, bias, cu_seqlens) => (output)
{{
    # (T, T): whether two tokens are of one text; a token's text is the number of texts that begin up to it
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    ones = Constant <value_ints = [1]> ()
    n_tokens_of_1 = Shape <start = 0, end = 1> (query)
    n_tokens = Squeeze (n_tokens_of_1)
    tokens = Range (zero, n_tokens, one)
    token_column = Unsqueeze (tokens, ones)
    starts = Cast <to = 7> (cu_seqlens)
    has_begun = GreaterOrEqual (token_column, starts)
    counted = Cast <to = 7> (has_begun)
    text_column = ReduceSum <keepdims = 1> (counted, ones)
    text_row = Transpose (text_column)
    is_one_text = Equal (text_column, text_row)

    # (1, N, T, H) each: queries, keys and values with their bias, which is (3 * N * H,)
    three = Constant <value_ints = [3]> ()
    n_heads = Shape <start = 1, end = 2> (query)
    head_size = Shape <start = 3, end = 4> (query)
    bias_shape = Concat <axis = 0> (three, n_heads, ones, head_size)
    query_float = Cast <to = 1> (query)
    bias_float = Cast <to = 1> (bias)
    by_part = Transpose <perm = [2, 1, 0, 3]> (query_float)
    bias_by_part = Reshape (bias_float, bias_shape)
    biased = Add (by_part, bias_by_part)
    queries, keys, values = Split <axis = 0, num_outputs = 3> (biased)

    keys_transposed = Transpose <perm = [0, 1, 3, 2]> (keys)
    products = MatMul (queries, keys_transposed)
    size_float = Cast <to = 1> (head_size)
    root = Sqrt (size_float)
    scores = Div (products, root)
    minus_infinity = Constant <value_float = -inf> ()
    masked = Where (is_one_text, scores, minus_infinity)
    weights = Softmax <axis = -1> (masked)
    context = MatMul (weights, values)
    context_of_tokens = Transpose <perm = [0, 2, 1, 3]> (context)
    rows = Flatten <axis = 2> (context_of_tokens)
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
