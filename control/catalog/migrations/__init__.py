"""Alembic migrations: `env.py` for the alembic command, `versions/` what they do."""
