"""Durable jobs: what was asked, who works on it, how far it is; and the recipes that do the work."""
