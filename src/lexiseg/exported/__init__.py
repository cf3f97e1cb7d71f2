"""Models as ONNX files, run by onnxruntime: no network of this package is built, no weights of it are loaded.

`ExportedSegmenter` answers like `Segmenter`. `lexiseg.export` writes the files.
"""

from lexiseg.exported.description import ExportedFileError
from lexiseg.exported.running import ExportedSegmenter

__all__ = ["ExportedFileError", "ExportedSegmenter"]
