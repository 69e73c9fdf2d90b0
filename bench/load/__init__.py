"""What the benchmarks of the producer share: a source of frames, and a producer process to measure."""
