"""Making a benchmark of edited copies from a folder of photographs."""
