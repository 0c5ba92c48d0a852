"""From planned runs to records: on this machine's cores or on a cluster."""
