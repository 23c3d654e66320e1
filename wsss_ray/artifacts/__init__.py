"""What runs leave behind: the store of finished steps, records of runs, tables and networks."""
