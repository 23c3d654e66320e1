"""KTSE (Chen et al., ECCV 2024)."""
