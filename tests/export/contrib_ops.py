"""ONNX Runtime's contrib operators where there is no CUDA: in NumPy, and as an ONNX function for the CPU provider.

Letters in shapes: B texts, S slots per text, T tokens, N heads of size H, and D = N * H.
Inputs and outputs are float16 or float32; arithmetic is float32, and each result is rounded once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_gemm import Gemm_7
from onnx.reference.ops.op_layer_normalization import LayerNormalization
from onnx.reference.ops.op_matmul import MatMul
from onnx.reference.ops.op_reduce_l2 import ReduceL2_18
from scipy.special import erf

Array = NDArray[Any]
FUNCTION_DOMAIN = "bgem3.tests"

# All tokens attend at once, and a mask keeps them to their own texts: token_offset has no part in it.
ATTENTION_FUNCTION = """
<opset_import: ["": {opset}], domain: "{domain}">
PackedMultiHeadAttention <scale> (query, bias, cumulative_sequence_length) => (output)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    first = Constant <value_ints = [1]> ()
    past_last = Constant <value_ints = [2147483647]> ()
    three = Constant <value_ints = [3]> ()
    rows_of_any_length = Constant <value_ints = [0, -1]> ()
    float_zero = Constant <value_float = 0.0> ()
    minus_infinity = Constant <value_float = -inf> ()
    given_scale = Constant <value_float: float = @scale> ()

    # (T, T): whether two tokens are of one text; a token's text is the number of texts that end before it
    n_tokens_of_1 = Shape <start = 0, end = 1> (query)
    n_tokens = Squeeze (n_tokens_of_1)
    tokens = Range (zero, n_tokens, one)
    token_column = Unsqueeze (tokens, one)
    ends_int32 = Slice (cumulative_sequence_length, first, past_last)
    ends = Cast <to = 7> (ends_int32)
    is_past_end = GreaterOrEqual (token_column, ends)
    past_ends = Cast <to = 7> (is_past_end)
    text_column = ReduceSum <keepdims = 1> (past_ends, first)
    text_row = Transpose (text_column)
    is_one_text = Equal (text_column, text_row)

    # (3, N, T, H): queries, keys and values
    n_heads = Shape <start = 1, end = 2> (query)
    head_size = Shape <start = 3, end = 4> (query)
    bias_shape = Concat <axis = 0> (three, n_heads, head_size)
    bias_float = Cast <to = 1> (bias)
    bias_by_head = Reshape (bias_float, bias_shape)
    bias_of_tokens = Unsqueeze (bias_by_head, two)
    query_float = Cast <to = 1> (query)
    by_part = Transpose <perm = [2, 1, 0, 3]> (query_float)
    biased = Add (by_part, bias_of_tokens)
    queries = Gather (biased, zero)
    keys = Gather (biased, one)
    values = Gather (biased, two)

    head_size_float = Cast <to = 1> (head_size)
    root = Sqrt (head_size_float)
    default_scale = Reciprocal (root)
    is_default = Equal (given_scale, float_zero)
    scale = Where (is_default, default_scale, given_scale)

    scaled = Mul (queries, scale)
    keys_transposed = Transpose <perm = [0, 2, 1]> (keys)
    scores = MatMul (scaled, keys_transposed)
    masked = Where (is_one_text, scores, minus_infinity)
    weights = Softmax <axis = -1> (masked)
    context = MatMul (weights, values)
    context_of_tokens = Transpose <perm = [1, 0, 2]> (context)
    rows = Reshape (context_of_tokens, rows_of_any_length)
    output = CastLike (rows, query)
}}
"""


def evaluate(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model in NumPy, one operator after another.

    Parameters
    ----------
    path : the ONNX file, its external data beside it
    feeds : arrays by input name

    Returns
    -------
    Arrays by output name.

    Raises
    ------
    ValueError
        If a contrib operator gets shapes, dtypes or a layout of tokens that it does not take.
    """
    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=NEW_OPS)
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def for_cpu(path: Path, target: Path) -> Path:
    """Copy a model, with its packed attention in standard operators, which ONNX Runtime's CPU provider has.

    Parameters
    ----------
    path : the ONNX file; its PackedMultiHeadAttention takes packed queries, keys and values (T, N, 3, H) and a bias
    target : the file to write, in the same folder, since both refer to the same external data

    Returns
    -------
    ``target``

    Raises
    ------
    ValueError
        If ``target`` is in another folder, or attention has inputs that the function does not take.
    """
    if path.resolve().parent != target.resolve().parent:
        raise ValueError(f"{target} is not in the folder of {path}, where its external data is")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "PackedMultiHeadAttention":
            query, key, value, bias, _, cumulative_sequence_length, *others = node.input
            if key or value or not bias or any(others):
                raise ValueError(f"{node.name} does not take packed queries, keys and values and a bias alone")
            scale = next((attribute.f for attribute in node.attribute if attribute.name == "scale"), 0.0)
            inputs = [query, bias, cumulative_sequence_length]
            call = helper.make_node(node.op_type, inputs, node.output, node.name, domain=FUNCTION_DOMAIN, scale=scale)
            node.CopyFrom(call)
    opset = next(opset.version for opset in model.opset_import if not opset.domain)
    model.functions.append(parser.parse_function(ATTENTION_FUNCTION.format(opset=opset, domain=FUNCTION_DOMAIN)))
    model.opset_import.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
    target.write_bytes(model.SerializeToString())
    return target


class PackedMultiHeadAttention(OpRun):
    """Attention within each text, by way of the padded layout (B, S).

    ``token_offset`` is an int32 (B, S) array: the slots, counted row by row, of the tokens and then of the padding.
    ``cumulative_sequence_length`` is an int32 (B + 1,) array: 0, then the number of tokens up to each text's end.
    """

    op_domain = "com.microsoft"

    def _run(
        self,
        query: Array,  # (T, N, 3, H), or (T, D) with key and value
        key: Array | None = None,  # (T, D)
        value: Array | None = None,  # (T, D)
        bias: Array | None = None,  # (3 * D,), of queries, keys and values in this order
        token_offset: Array | None = None,
        cumulative_sequence_length: Array | None = None,
        attention_bias: Array | None = None,
        *,
        num_heads: int,
        scale: float | None = None,
        mask_filter_value: float | None = None,  # the kernel takes it and does not use it
    ) -> tuple[Array]:
        if token_offset is None or cumulative_sequence_length is None or attention_bias is not None:
            raise ValueError("expected token_offset and cumulative_sequence_length, and no attention_bias")
        parts = _queries_keys_values(query, key, value, bias, num_heads)  # (3, T, N, H)
        _check_layout(token_offset, cumulative_sequence_length, len(query))
        scale = scale or 1 / np.sqrt(parts.shape[-1])
        token_slots = token_offset.reshape(-1)[: len(query)]
        padded = np.zeros((3, token_offset.size, *parts.shape[2:]), np.float32)
        padded[:, token_slots] = parts
        padded = padded.reshape(3, *token_offset.shape, *parts.shape[2:])  # (3, B, S, N, H)
        context = np.zeros(padded.shape[1:], np.float32)
        for text, length in enumerate(np.diff(cumulative_sequence_length)):
            if length:
                queries, keys, values = padded[:, text].transpose(0, 2, 1, 3)  # (N, S, H) each
                scores = (np.float32(scale) * queries) @ keys.transpose(0, 2, 1)
                scores[:, :, length:] = -np.inf
                context[text] = (_softmax(scores) @ values).transpose(1, 0, 2)
        slots = context.reshape(token_offset.size, -1)  # (B * S, D)
        return (slots[token_slots].astype(query.dtype),)


def _queries_keys_values(
    query: Array, key: Array | None, value: Array | None, bias: Array | None, n_heads: int
) -> Array:
    """Check the float inputs and return (3, T, N, H) in float32, the bias added."""
    found = [None if array is None else (array.shape, array.dtype) for array in (query, key, value)]
    if query.ndim == 4:
        if query.shape[1:3] != (n_heads, 3) or found[1:] != [None, None]:
            raise ValueError(f"expected query (T, {n_heads}, 3, H) alone, found query, key and value {found}")
        parts = query.transpose(2, 0, 1, 3)
    else:
        if query.ndim != 2 or query.shape[1] % n_heads or found != [found[0]] * 3:
            raise ValueError(f"expected query, key and value (T, {n_heads} * H) of one dtype, found {found}")
        parts = np.stack([array for array in (query, key, value) if array is not None])
        parts = parts.reshape(3, len(query), n_heads, -1)
    parts = parts.astype(np.float32)
    if bias is not None:
        _, _, _, head_size = parts.shape
        _check(bias, "bias", (3 * n_heads * head_size,), query.dtype)
        parts += bias.reshape(3, 1, n_heads, head_size)
    return parts


def _check_layout(token_offset: Array, cumulative_sequence_length: Array, n_tokens: int) -> None:
    if token_offset.ndim != 2:
        raise ValueError(f"expected token_offset (B, S), found {token_offset.shape}")
    n_texts, n_slots = token_offset.shape
    _check(token_offset, "token_offset", (n_texts, n_slots), np.int32)
    _check(cumulative_sequence_length, "cumulative_sequence_length", (n_texts + 1,), np.int32)
    if sorted(token_offset.flat) != list(range(token_offset.size)):
        raise ValueError(f"expected each of {token_offset.size} slots once in token_offset, found {token_offset}")
    lengths = np.diff(cumulative_sequence_length)
    ends = cumulative_sequence_length[0], cumulative_sequence_length[-1]
    if ends != (0, n_tokens) or lengths.min() < 0 or lengths.max() > n_slots:
        raise ValueError(
            f"expected cumulative_sequence_length from 0 to {n_tokens} in steps of 0 to {n_slots}, "
            f"found {cumulative_sequence_length}"
        )


def _softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


class SkipLayerNormalization(OpRun):
    """Layer normalisation of ``rows + skip + bias`` over the last axis: ``gamma * (x - mean) / std + beta``.

    ``rows`` and ``skip`` are (T, D) or (B, S, D); ``gamma``, ``beta`` and ``bias`` are (D,).
    """

    op_domain = "com.microsoft"

    def _run(
        self,
        rows: Array,
        skip: Array,
        gamma: Array,
        beta: Array | None = None,
        bias: Array | None = None,
        *,
        epsilon: float = 1e-12,
    ) -> tuple[Array]:
        if rows.ndim not in (2, 3):
            raise ValueError(f"expected input (T, D) or (B, S, D), found {rows.shape}")
        _check(skip, "skip", rows.shape, rows.dtype)
        for name, vector in (("gamma", gamma), ("beta", beta), ("bias", bias)):
            if vector is not None:
                _check(vector, name, rows.shape[-1:], rows.dtype)
        summed = rows.astype(np.float32) + skip
        if bias is not None:
            summed += bias
        centred = summed - summed.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        normalised = centred / np.sqrt(variance + np.float32(epsilon)) * gamma
        if beta is not None:
            normalised += beta
        return (normalised.astype(rows.dtype),)


class BiasGelu(OpRun):
    """``x * (1 + erf(x / √2)) / 2`` for ``x = rows + bias``, with ``rows`` (..., D) and ``bias`` (D,)."""

    op_domain = "com.microsoft"

    def _run(self, rows: Array, bias: Array) -> tuple[Array]:
        _check(bias, "B", rows.shape[-1:], rows.dtype)
        summed = rows.astype(np.float32) + bias
        return ((summed * (1 + erf(summed / np.float32(np.sqrt(2)))) / 2).astype(rows.dtype),)


def _check(array: Array, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    if (array.shape, array.dtype) != (shape, dtype):
        raise ValueError(f"expected {name} {shape} {np.dtype(dtype)}, found {array.shape} {array.dtype}")


def _in_float32(kernel: Any) -> type[OpRun]:
    """Derive an operator that rounds once from onnx.reference's, which rounds each step to float16 (and is slow)."""

    def run(self: OpRun, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:
        assert inputs[0] is not None
        widened = [x.astype(np.float32) if x is not None and x.dtype == np.float16 else x for x in inputs]
        return tuple(y.astype(inputs[0].dtype) for y in kernel._run(self, *widened, **attributes))

    return type(kernel.__name__.partition("_")[0], (kernel,), {"_run": run})


NEW_OPS = [PackedMultiHeadAttention, SkipLayerNormalization, BiasGelu] + [
    _in_float32(kernel) for kernel in (MatMul, Gemm_7, LayerNormalization, ReduceL2_18)
]
