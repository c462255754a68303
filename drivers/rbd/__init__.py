"""The `rbd` store: images as RBD images in glance_store's layout."""
