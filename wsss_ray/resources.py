# SPDX-License-Identifier: Apache-2.0
"""What a run may use of a machine or cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from wsss_ray.config import Changes, Config


class NodeKind(Config):
    """Nodes of a cluster that are alike."""

    count: Annotated[PositiveInt, Changes("nothing")] = 1
    cpus: Annotated[PositiveInt, Changes("nothing")]
    gpus: Annotated[NonNegativeInt, Changes("nothing")] = 0


class Resources(Config):
    """What a run may use; changes no result and is in no digest."""

    train_workers: Annotated[PositiveInt, Changes("nothing")] = 1
    inference_workers: Annotated[PositiveInt | None, Changes("nothing")] = None
    """None uses every core (or GPU) there is."""
    gpus: Annotated[bool | None, Changes("nothing")] = None
    """None uses GPUs where the cluster has some."""
    batch_size: Annotated[PositiveInt, Changes("nothing")] = 8
    """Images of one size in one forward pass of the inference steps."""
    loader_threads: Annotated[PositiveInt, Changes("nothing")] = 2
    checkpoint_minutes: Annotated[PositiveFloat, Changes("nothing")] = 10.0
    """Between two checkpoints of a training within an epoch; each epoch ends with one, too."""
    nodes: Annotated[tuple[NodeKind, ...], Changes("nothing")] = ()
    """What a cluster that grows will have, where it has no autoscaler of Ray that says so; work is laid out for it."""
