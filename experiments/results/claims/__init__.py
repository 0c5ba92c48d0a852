"""Claims: sentences of the papers, each with a statistic of measured values, a test, and a verdict per profile."""
