"""What result files say: figures, reports, comparisons, costs."""
