"""Where the work runs: Ray actors and the store that their artefacts live in."""

import os

# Ray would say in lines of its own what the scheduler says of a lost process. Read when Ray is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
