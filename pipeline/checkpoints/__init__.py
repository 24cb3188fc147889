"""What a checkpoint is: its files, its tensors, its tokenizer, where it comes from, and how a synthetic one is made."""
