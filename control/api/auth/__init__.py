"""Who asks (`caller`), how that is found out, and what they may do."""
