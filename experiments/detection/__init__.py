"""Detection: is the novelty that consolidation waits for high at changes, and only there?"""
