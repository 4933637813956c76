"""Make a benchmark of edited copies from a folder of photos: the roles of the photos, the files, near-duplicates.

`ascl.image_copy.evaluation` scores a benchmark.
"""
