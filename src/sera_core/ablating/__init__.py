"""What running an ablation takes: its keys, groups of arms, the plan of the grid, one run, and what is kept."""
