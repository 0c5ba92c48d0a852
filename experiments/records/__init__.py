"""What runs leave: records, in the store of this machine and committed in the repository."""
