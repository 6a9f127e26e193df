"""Demonstrators that plan in a copy of the simulator."""
