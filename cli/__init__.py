"""`sesmail`, the operator's command."""
