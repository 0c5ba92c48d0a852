"""From a table and a profile to runs, their keys and what they cost."""
