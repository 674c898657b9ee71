"""Teach one frozen language model many tasks by prompt tuning."""
