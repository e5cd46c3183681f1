"""What does a run leave behind? Models, deltas, audits and exports on disk."""
