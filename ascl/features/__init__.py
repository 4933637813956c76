"""Features from images: backends (grid, global vector, patches, detectors), the writer, its file, Ray, drawing.

`ascl.data.stores` reads the files, and `ascl.images` decodes the images.
"""

from ascl.features.backends import BATCH_SIZE, GLOBAL_BACKENDS, REGION_BACKENDS, backend_class, make_backend

__all__ = ["BATCH_SIZE", "GLOBAL_BACKENDS", "REGION_BACKENDS", "backend_class", "make_backend"]
