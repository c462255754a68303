"""The `glissade` command. The client commands need only the standard library and click; rich is imported
to draw.
"""
