"""The report: every table, cell, run and claim as static pages, from committed records and those of this machine."""
