"""What leaves the house and what comes in: exported students with their cards, and other people's checkpoints verified."""
