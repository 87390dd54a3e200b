"""The command line, `chat`: runs the service, sends requests to it, and diagnoses it.

`main` finds the command. Each command's module imports only what that command needs, so sending a
message does not load the engine, and serving does not load the client.
"""
