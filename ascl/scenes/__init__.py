"""The embedded data set: a world of shapes, its language, captions, what is true of a scene, and its rendering."""
