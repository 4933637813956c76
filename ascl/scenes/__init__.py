"""The embedded data set: world, language, captions, truth, rendering, and a small region detector."""
