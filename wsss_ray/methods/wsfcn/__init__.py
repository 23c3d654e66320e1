# SPDX-License-Identifier: Apache-2.0
"""WS-FCN (Wang et al., TNNLS 2023)."""
