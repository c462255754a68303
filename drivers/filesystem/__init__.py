"""Images as files in directories: the `file` store, and local files as an import source."""
