"""Everything that communicates between processes: DTensors, their gradients, sums, and which shards take a step."""
