"""The real state machine with the real handlers, in the embedded cloud."""
