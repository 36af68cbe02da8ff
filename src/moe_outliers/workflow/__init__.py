"""What rules, scripts and commands share: settings, the sweep, locks, what is damaged."""
