"""Kinds of hostile inputs, one file for each thing that is read: a module lists its kinds by name in KINDS."""
