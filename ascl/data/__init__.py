"""Captions, feature stores, training pairs. Getting a data set lies in `datasets`, generated samples in `samples`."""
