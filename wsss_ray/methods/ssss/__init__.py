"""SSSS (Araslanov and Roth, CVPR 2020)."""
