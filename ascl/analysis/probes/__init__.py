"""Probes of asymmetry: caption variants that say something false, say more, or say less, and their order by score."""
