"""Settings of a run: frozen dataclasses, read from YAML files and the command line. Imports only `core`."""
