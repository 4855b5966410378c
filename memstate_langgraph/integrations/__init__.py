"""Adapters to particular products, each loaded only when it is imported."""
