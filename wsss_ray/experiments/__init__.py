"""Runs, studies and sweeps."""
