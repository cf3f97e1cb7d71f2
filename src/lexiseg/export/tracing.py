"""From modules to ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch import Tensor, nn

from lexiseg.export.graphs import ExportError

OPSET = 20
"""Of the graphs: bilinear sampling of maps has been there since 16, exact GELU as one operator since 20."""


def traced(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, Any]], outputs: Sequence[str]
) -> ir.Model:
    """The graph of a module. axes: input -> axis -> its `torch.export.Dim`, of those that may change."""
    with torch.no_grad(), quiet("onnxscript", "onnx_ir", "torch.onnx", "torch.export"):
        program = torch.onnx.export(
            module,
            (),
            kwargs=dict(inputs),
            dynamic_shapes={name: dict(axes.get(name, {})) or None for name in inputs} if any(axes.values()) else None,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None  # for the reader of types
        graph = program.model.graph
        fixed = [
            f"axis {axis} of {value.name}"
            for value in graph.inputs
            for axis in axes.get(value.name or "", {})
            if value.shape is None or isinstance(value.shape[axis], int)
        ]
        if fixed:  # the exporter says so in a warning at best
            raise ExportError(f"traced as a constant, though it may change: {', '.join(fixed)}")
        return tidied(program.model)


def tidied(model: ir.Model) -> ir.Model:
    """The same graph without what is constant or said twice.

    The exporter's own optimisation is not asked: it takes additions of numbers below 1e-8 for additions of zero, and
    those keep empty masks from being divided by zero. What remains to be fused, onnxruntime fuses when it opens a file.
    """
    optimizer.inline(model)
    for _ in range(2):
        optimizer.fold_constants(model)
        optimizer.remove_unused_nodes(model)
    tidy = (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )
    for each in tidy:
        model = each(model).model
    return model


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without warnings, and with nothing but errors of these loggers: libraries that speak of their own affairs."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
