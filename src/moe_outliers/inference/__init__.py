"""What the metrics of a sweep allow to conclude: intervals, comparisons, simulations."""
