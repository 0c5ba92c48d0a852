"""The commands of `hkd`, one file for what belongs together: they parse, call and print."""
