"""Region features from object detectors: bottom-up attention (its own network here), torchvision's, detectron2's.

`bottom_up`, `torchvision_detector` and `detectron2_backend` are the backends; the other modules are their parts.
"""
