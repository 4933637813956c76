"""Answers of an index about images: who copied whom, how sure, in which direction.

`model` binds an index to what describes its images, `describe` turns files into rows, `add`, `query` and `calibrate`
are what is done with them, and `report` puts it into words.
"""
