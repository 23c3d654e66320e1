# SPDX-License-Identifier: Apache-2.0
"""KTSE (Chen et al., ECCV 2024)."""
