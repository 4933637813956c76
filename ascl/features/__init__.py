"""Features from images: backends (grid, global vector, patches, detectors), the writer, the file, a cluster, drawing.

Reading the files lies in `data.stores`, decoding images in `images`.
"""

from ascl.features.backends import BATCH_SIZE, GLOBAL_BACKENDS, REGION_BACKENDS, backend_class, make_backend

__all__ = ["BATCH_SIZE", "GLOBAL_BACKENDS", "REGION_BACKENDS", "backend_class", "make_backend"]
