"""Feature stores: one file per format, one interface (`base`); `open` picks the reader, `convert` writes our format."""

from ascl.data.stores.base import FeatureStore
from ascl.data.stores.open import open_features

__all__ = ["FeatureStore", "open_features"]
