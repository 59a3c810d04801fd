"""Which of the known bugs explains what was observed."""
