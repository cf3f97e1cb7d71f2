"""Smaller weights: half precision, and eight bits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lexiseg.export.tracing import quiet
from lexiseg.exported.running import Feed

LEAST_NUMBERS = 1024
"""Smaller tensors stay as they are: nothing is gained by them."""


def store_in_half(model: ir.Model) -> None:
    """Large weights are stored in float16; a cast brings them back to float32 when a file is opened.

    Everything is computed in float32, so that the outcome differs by the rounding of the weights alone, and takes as
    long: onnxruntime computes few operators in half precision on a CPU, and casts to and fro around each. A tensor with
    numbers beyond its range stays in float32.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_NUMBERS:
            continue
        with np.errstate(over="ignore"):
            half = tensor.numpy().astype(np.float16)
        if not np.isfinite(half).all():
            continue
        stored = ir.Value(
            name=f"{name}_half",
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=ir.Shape(half.shape),
            const_value=ir.tensor(half, name=f"{name}_half"),
        )
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        output = cast.outputs[0]
        output.type, output.shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, output)
        del graph.initializers[name]
        output.name = name
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def store_in_bytes(path: Path, feeds: Iterable[Feed], out: Path) -> None:
    """A float32 file whose convolutions are computed in eight bits, weights per channel.

    feeds: inputs made of real photos, whose ranges the activations get. Everything else stays in float32.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType

    class Reader(CalibrationDataReader):
        """The feeds, one after the other."""

        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    with quiet("root"):  # gets advice about preprocessing
        quantization.quantize_static(
            path,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
