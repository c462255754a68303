"""`make demo`: the main job from end to end, through a daemon of its own, with every claim checked from
outside.

It is a client: it knows the configuration file, the API and the layout of a file store, and imports nothing
of the daemon.
"""
