"""Versions of models."""
