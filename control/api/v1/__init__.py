"""The handlers of /v1: they read a request, ask the services, and answer. Errors are answered in one place
(`app.py`).
"""
