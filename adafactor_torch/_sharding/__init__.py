"""Everything that knows torch.distributed: DTensors, their gradients, process groups, and which shards take a step."""
