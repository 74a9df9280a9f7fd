"""One parameter in one step: what is decided once, what is held here, and what processes add up."""
