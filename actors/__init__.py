"""Where the work runs: Ray actors and the store that their artefacts live in."""
