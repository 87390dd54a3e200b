"""The HTTP interface without sockets: values, problems, rules for requests, routes."""
