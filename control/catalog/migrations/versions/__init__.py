"""One module per migration; the first is the baseline."""
