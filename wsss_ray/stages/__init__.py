# SPDX-License-Identifier: Apache-2.0
"""One file per step of a run: what its result depends on, its worker, the function that finds or computes it."""
