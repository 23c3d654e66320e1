# SPDX-License-Identifier: Apache-2.0
"""Runs, studies and sweeps."""
