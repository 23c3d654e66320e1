"""ESOL (Li et al., NeurIPS 2022)."""
