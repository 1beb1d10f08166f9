"""What runs when: stages, configuration, artefact store, sweeps, report and command line."""
