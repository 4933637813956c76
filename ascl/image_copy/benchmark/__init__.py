"""Making a benchmark of edited copies from a folder of photos: the roles of the photos, the files, near-duplicates.

How a benchmark is scored lies in `image_copy.evaluation`.
"""
