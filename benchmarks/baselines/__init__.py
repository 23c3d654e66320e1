# SPDX-License-Identifier: Apache-2.0
"""The other sides: what a few lines of plain PyTorch do, without this package's engine."""
