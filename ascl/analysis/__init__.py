"""Looking at models: what a number owes to its protocol."""
