"""A local judge on PyRIT's human labels: agreement, escalation, values learned in sequence, cost."""
