"""WS-FCN (Wang et al., TNNLS 2023)."""
