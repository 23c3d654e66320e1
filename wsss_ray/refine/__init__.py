"""Class maps -> pseudo masks: seeds, dense CRF, PAMR and PAR, PSA and IRN."""
