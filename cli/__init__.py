"""Thin Typer commands over the library."""
