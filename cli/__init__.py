# SPDX-License-Identifier: Apache-2.0
"""Thin Typer commands over the library."""
