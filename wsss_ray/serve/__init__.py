"""A trained network asked from outside: prediction, export, annotations."""
