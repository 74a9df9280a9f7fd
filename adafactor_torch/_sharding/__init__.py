"""All that knows torch.distributed: DTensors, their gradients, process groups, and who takes the step."""
