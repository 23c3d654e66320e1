"""Images from anywhere, as rows and samples: sources, shards, checks, augmentation and classical saliency."""
