"""``wsss data prepare``: a source's pictures become Parquet shards through Ray Data, checked on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any

import numpy as np
import ray

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.shards import Manifest, ShardInfo, write_shard
from wsss_ray.data.source import Item, Source, validate_row
from wsss_ray.stages.cluster import Machines
from wsss_ray.stages.progress import Bar

ROWS_PER_SHARD = 32
