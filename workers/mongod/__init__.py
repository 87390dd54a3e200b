"""The embedded MongoDB: a mongod that the service starts and stops itself."""
