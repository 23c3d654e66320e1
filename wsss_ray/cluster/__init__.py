# SPDX-License-Identifier: Apache-2.0
"""Ray itself: joining a cluster, work over shards, progress."""
