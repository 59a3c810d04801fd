"""What is said of it: rows, verdicts, text, JSON and HTML."""
