# SPDX-License-Identifier: Apache-2.0
"""How good masks and maps are: confusion matrix, threshold curve, average precision, bootstrap."""
