"""What lies under everything: names people type, files that are whole or not there, what was read checked against
its declaration, what long work tells, what commands print, and how a folder offers its names.

Each module is imported by its own name; there is no torch here but where memory is asked for.
"""
