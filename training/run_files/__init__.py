"""What a run keeps on disk: what decided it, its data's record, its checkpoints, its lock."""
