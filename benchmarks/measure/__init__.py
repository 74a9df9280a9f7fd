"""Measuring, in any framework: what is asked for, who takes part, one case, and what is found."""
