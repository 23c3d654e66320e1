# SPDX-License-Identifier: Apache-2.0
"""Images from anywhere, as rows and samples: sources, shards, checks, augmentation and classical saliency."""
