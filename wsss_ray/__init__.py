"""wsss-ray: weakly supervised semantic segmentation from image-level labels, run on Ray."""

__version__ = "0.1.0"
