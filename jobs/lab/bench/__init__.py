"""The numbers behind README and cards, with intervals, as tables and as JSON."""
