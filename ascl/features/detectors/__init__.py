"""Region features by object detectors: bottom-up attention, torchvision, detectron2."""
