"""`chat doctor`: what is wrong with the host, the service and the database."""
