"""Ray itself: joining a cluster, work over shards, progress."""
