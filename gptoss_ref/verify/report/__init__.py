"""Reports: rows, causes and verdicts, as text, JSON and HTML."""
