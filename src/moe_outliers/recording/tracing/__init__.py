"""How a model that runs without weights is followed, and what that shows: see `observed`."""
