"""Settings of a run as frozen dataclasses, read from YAML and the command line. Imports nothing but `core`."""
