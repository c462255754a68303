"""OpenStack Swift, and radosgw's Swift API, in glance_store's layout."""
