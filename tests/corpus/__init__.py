"""Emails as the internet sends them, not as the RFCs say; all are generated, none is real."""
