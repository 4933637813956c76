"""Region features by object detectors: bottom-up attention (its own network here), torchvision's, detectron2's.

`bottom_up`, `torchvision_detector` and `detectron2_backend` are the backends; the rest is what they are made of.
"""
