"""C++ for CPUs, compiled on this machine at the first step."""
