"""Rivals of the multi-task learner, each its own file."""
