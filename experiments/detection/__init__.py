"""Detection: the novelty that triggers consolidation, evaluated as a detector of changes."""
