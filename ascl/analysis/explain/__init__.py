"""Why a pair scores as it does: the terms of words and regions, and their picture."""
