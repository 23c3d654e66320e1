# SPDX-License-Identifier: Apache-2.0
"""The mean field of a dense CRF in compiled code: exact, and several times as fast as pydensecrf. Needs numba."""


class UnfitError(Exception):
    """Settings beyond what compiled code holds: keys of a lattice in 62 bits, exponentials in float32."""
