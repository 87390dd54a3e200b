"""The command line, `chat`: serves, speaks to a service, looks after one.

`main` finds the command; each command's file imports what it needs and no more, so that sending a
message does not load the engine, nor serving the client.
"""
