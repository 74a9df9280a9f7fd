"""From parameter groups to tasks, and from tasks to backends."""
