"""Measurements of a running engine: `higgs-voice bench`. Each says where it ran and ends with one JSON line."""
