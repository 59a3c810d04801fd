"""The model as operations that can be replaced, evaluated from any given tap points."""
