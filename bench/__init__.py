"""Named scenarios that measure the real thing, beside its rivals and in one run."""
