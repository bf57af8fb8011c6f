"""Embedding tables that keep memory for the rows in use."""
