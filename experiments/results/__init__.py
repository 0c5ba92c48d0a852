"""From records to tables, verdicts, claims and regressions."""
