"""What a network predicts, and how images are corrupted for it, one file each."""
