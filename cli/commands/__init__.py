"""One module per command of `sesmail`; what they share lies one folder up."""
