"""Answers of an index about images: who copied whom, how sure, in which direction."""
