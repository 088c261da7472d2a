"""What lies below the core: files, memory, processes, checkpoints, and models as they come."""
