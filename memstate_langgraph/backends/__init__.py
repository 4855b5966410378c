"""Storages: where facts, log, vectors' journal and checkpoints live."""
