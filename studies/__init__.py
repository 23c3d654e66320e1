"""The papers, one file each: their tables as typed functions with the published numbers beside them."""
