"""One parameter in one step: its configuration, its tensors, the elements held here, and what processes add up."""
