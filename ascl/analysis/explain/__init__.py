"""Why a pair scores as it does: words and regions that contribute, drawn."""
