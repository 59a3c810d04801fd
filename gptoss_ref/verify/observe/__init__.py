"""What somebody's implementation computed: adapters, arrays, and what a server shows."""
