"""Looking at single runs: while they go on, beside one another, in other people's tools, and putting them away."""
