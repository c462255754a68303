"""The Images API, version 2, as OpenStack's clients call it."""
