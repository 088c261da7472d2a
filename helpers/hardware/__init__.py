"""What a model takes: memory, time and arithmetic, estimated and measured."""
