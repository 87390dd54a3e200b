"""Streams of one inbox, as Server-Sent Events and over WebSockets."""
