"""A step of an optimizer: builds tasks from parameter groups, and has backends step them."""
