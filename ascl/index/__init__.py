"""One persistent index of vectors: records, files, search (exact and compressed), calibration."""
