"""WS-FCN (Wang et al., 2023)."""
