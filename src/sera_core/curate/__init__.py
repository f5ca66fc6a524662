"""From a policy and its data to the pairs of one iteration: prompts, log-probs, scores, labels, selection."""
