"""From activations to statistics: the hooks, and the ways to reduce what they see."""
