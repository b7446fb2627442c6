"""Sweeps that resume: what a job is, the ledger of what became of it, how jobs are run, tables of their results."""
