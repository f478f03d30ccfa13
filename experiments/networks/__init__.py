"""Networks of many kinds: detection of changes in their data, and retention of earlier tasks."""
