"""The search for known bugs that explain the observed numbers."""
