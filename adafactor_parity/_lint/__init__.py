"""`adafactor lint`: says what another library's constructor call computes, and writes the equivalent call."""
