"""The project's own learners, policies and driver on synthetic input, as measured processes."""
