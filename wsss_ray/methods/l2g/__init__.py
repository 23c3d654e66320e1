# SPDX-License-Identifier: Apache-2.0
"""L2G (Jiang et al., CVPR 2022)."""
