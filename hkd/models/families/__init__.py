"""One file each: how an architecture is built, run and tapped."""
