"""L2G (Jiang et al., CVPR 2022)."""
