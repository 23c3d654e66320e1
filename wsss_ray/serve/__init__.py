# SPDX-License-Identifier: Apache-2.0
"""A trained network asked from outside: prediction, export, annotations."""
