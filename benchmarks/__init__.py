# SPDX-License-Identifier: Apache-2.0
"""Every claim about speed and memory as a pair that is measured in one call: ``python -m benchmarks``."""
