"""The science: environments, data, networks, losses, learners, evaluation and the adaptive policy; no Ray."""
