"""From other people's checkpoints to ours."""
