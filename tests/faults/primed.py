"""Imported once by the server that forks the processes to be killed."""

from tests.faults.writers import prime

prime()
