# SPDX-License-Identifier: Apache-2.0
"""What runs leave behind: the store of finished steps, records of runs, tables and networks."""
