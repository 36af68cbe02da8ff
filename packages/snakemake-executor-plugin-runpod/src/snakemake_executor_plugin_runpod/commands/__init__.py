"""What people are shown of pods: rows, text, and what is wrong with this machine."""
