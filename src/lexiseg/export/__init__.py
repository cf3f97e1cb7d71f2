"""Writing models as ONNX files that `lexiseg.exported` runs."""

from lexiseg.export.graphs import ExportError
from lexiseg.export.writing import Exported, export_model

__all__ = ["ExportError", "Exported", "export_model"]
