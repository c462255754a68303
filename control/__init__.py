"""Composes: the only place that knows configuration, database, HTTP API and users."""
