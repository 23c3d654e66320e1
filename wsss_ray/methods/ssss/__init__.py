# SPDX-License-Identifier: Apache-2.0
"""SSSS (Araslanov and Roth, CVPR 2020)."""
