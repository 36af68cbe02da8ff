"""The figures: each drawn by one function over the tables of the sweep."""
