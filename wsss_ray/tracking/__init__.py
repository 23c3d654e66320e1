# SPDX-License-Identifier: Apache-2.0
"""Runs in MLflow: the only room that imports it. The driver alone writes, in batches, with explicit run ids."""

from wsss_ray.tracking.models import save_model as save_model
from wsss_ray.tracking.models import set_served_model as set_served_model
from wsss_ray.tracking.names import clean_name as clean_name
from wsss_ray.tracking.names import flatten as flatten
from wsss_ray.tracking.sending import sync_outboxes as sync_outboxes
from wsss_ray.tracking.store import check_store as check_store
from wsss_ray.tracking.store import choose_artifact_root as choose_artifact_root
from wsss_ray.tracking.store import choose_store as choose_store
from wsss_ray.tracking.store import close_dead_runs as close_dead_runs
from wsss_ray.tracking.tracker import Tracker as Tracker
