# SPDX-License-Identifier: Apache-2.0
"""What one machine does with a method: train, localize, predict. Plain PyTorch, no Ray."""
