"""The command line: one module a command. Nothing is computed here, and nothing imports it."""
