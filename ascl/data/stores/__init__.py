"""One file for each feature format, one interface (`base`); `open` picks the reader, `convert` writes our format."""
