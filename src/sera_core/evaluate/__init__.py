"""What a trained policy is like: win rates, rewards on held-out pairs, drift, each with an interval."""
