"""Checks of deploy/. They need packages that only tox's environment `deploy` has."""
