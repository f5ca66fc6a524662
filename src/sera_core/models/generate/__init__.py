"""Generators: sampling responses from a policy."""
