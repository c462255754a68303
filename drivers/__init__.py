"""One folder per store, each turning that store into a `dataplane.store.Driver`. Drivers never import each
other.
"""
