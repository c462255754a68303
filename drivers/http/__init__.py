"""Images on web servers, read-only: the key is the URL."""
