# SPDX-License-Identifier: Apache-2.0
"""Class maps -> pseudo masks: seeds, dense CRF, PAMR and PAR, PSA and IRN."""
