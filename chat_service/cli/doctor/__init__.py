"""`chat doctor`: checks the settings, the machine, the database and a running service."""
