"""Generated samples (AsCL, section 2.2): positive captions, and negatives made by noise on words."""
