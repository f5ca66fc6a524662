"""SeRA implicit-reward-margin scoring as a sera-core plugin."""
