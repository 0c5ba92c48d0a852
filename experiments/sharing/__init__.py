"""What leaves the house and what comes in: students exported with their cards, other people's checkpoints verified."""
