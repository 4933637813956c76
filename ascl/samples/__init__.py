"""Generated samples (AsCL, section 2.2): positive captions and negative word embeddings."""
