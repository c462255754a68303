"""Moves bytes: protocols, pump, digests, planning, errors.

Imports nothing but the standard library, xxhash and our own kernels (checked by import-linter).
"""
