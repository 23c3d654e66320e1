# SPDX-License-Identifier: Apache-2.0
"""ESOL (Li et al., NeurIPS 2022)."""
